"""Sources of many images in few files: shards, zip archives, tables.

What lies where is found out once, each image is decoded once to see whether it can be used, and both are kept as arrays in
the user's cache folder. Opening the source again looks at the files' sizes and times and maps these arrays into memory:
neither time nor memory grows with the number of images until they are asked for.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from rcg.core.errors import UserError
from rcg.core.files import atomic_folder
from rcg.data.blobs import Blob, forget
from rcg.data.decode import DECODE_VERSION, DecodeError, decode
from rcg.data.image_source import Groups, ImageSource, by_ending, listing, none_read, remarks_on, unusable
from rcg.data.repositories import several_splits, split_folders
from rcg.data.verify import Finding, inspect_bytes, user_cache_dir, verify

META = "meta.json"
INDEX_VERSION = 3
"""Raise it when an index holds other things than before, so that it is made anew."""
PLACE = np.dtype(
    [
        ("file", "<i4"),
        ("offset", "<i8"),
        ("stored", "<i4"),
        ("size", "<i4"),
        ("extra", "<u4"),
        ("unpacked", "<i4"),
        ("packed", "u1"),
    ]
)
"""Where an image is, in 29 bytes: number of the file, offset and bytes there, bytes of the image file, and whether it is
compressed. `extra` is the CRC-32 of a zip's member; or, where the bytes are those of a page of a table, the place in it once
it is `unpacked` to so many bytes, and `packed` is how. A size below 0: see `REASONS`."""
NO_BYTES, TOO_LARGE, NO_PAGE = -1, -2, -3
REASONS = {
    NO_BYTES: "its row holds no bytes",
    TOO_LARGE: "it has 2 GiB or more",
    NO_PAGE: "its page is damaged",
}
CHUNK = 1 << 20
"""Numbers looked at together, so that memory does not grow with their number."""


def bounded(sizes: np.ndarray) -> np.ndarray:
    """Sizes in bytes as `PLACE` holds them, int32."""
    return np.where(sizes < 1 << 31, sizes, TOO_LARGE).astype(np.int32)


@dataclass
class Content:
    """What one file, or a part of one, holds.

    Attributes:
        names: of the images, unique over all files of a source.
        places: `PLACE` [N].
        classes: name of each image's class; None where it has none.
        keys: which images belong together: name of each image's group; None where nothing says so.
        captions: text of the groups that have one.
        unread: see `count_unread`.
        beside: other images of a key, which are left out: how many of which ending.
    """

    names: list[str]
    places: np.ndarray
    classes: Sequence[str | None] | None = None
    keys: list[str] | None = None
    captions: dict[str, str] | None = None
    unread: Mapping[str, int] = field(default_factory=dict)
    beside: Mapping[str, int] = field(default_factory=dict)


class Format(ABC):
    """A kind of file that holds many images.

    Attributes:
        kind: its name.
        arranges: whether `arrange` does anything.
    """

    kind: str
    arranges = False

    def identity(self) -> dict[str, Any]:
        """What the index depends on besides the files, as JSON."""
        return {"kind": self.kind}

    @abstractmethod
    def contents(self, blob: Blob, number: int) -> Iterator[Content]:
        """What a file holds, which is number `number`, in parts. `UserError`: it is damaged or unsafe."""

    def arrange(self, names: list[str], kept: list[int]) -> tuple[list[str], list[str] | None, bool]:
        """Of the usable images, whose numbers among all are `kept`: their names as they count for the fingerprint, the class of
        each where the names tell it, and whether some lie in folders and others beside them."""
        return [names[i] for i in kept], None, False

    def class_names(self) -> list[str] | None:
        """All classes in the data's own order; None sorts those that occur."""
        return None

    def groups(self, blobs: list[Blob], names: list[str]) -> Groups | None:
        """Which images belong together, where `Content` does not say so."""
        return None

    def read(self, blob: Blob, place: Any) -> bytes:
        """The bytes of an image file. `OSError` or `DecodeError`: they cannot be read or unpacked."""
        return blob.read(int(place["offset"]), int(place["size"]))


class Index:
    """What is known of a source: arrays, mapped into memory from a folder, and the rest.

    Args:
        folder: where it is kept.
        meta: identity (of the files and what was asked), fingerprint, class_names, skipped, and remarks, see `ImageSource`.
        keep: what the folder must outlive, such as a temporary one.

    Attributes:
        places: `PLACE` [N], of the usable images.
        sizes: int32 [N, 2].
        labels: int64 [N], or of length 0.
        names: uint8, the names one after the other; `ends` int64 [N] says where each ends.
        groups: int64 [N], or of length 0.
        keys: uint8, the names of the groups; `key_ends` int64 says where each ends. `captions` and `caption_ends` alike, of
            length 0 where no group has one; `captioned`, bool, says which have.
    """

    ARRAYS: ClassVar[dict[str, np.dtype[Any]]] = {
        "places": PLACE,
        "sizes": np.dtype(("<i4", (2,))),
        "labels": np.dtype("<i8"),
        "names": np.dtype("u1"),
        "ends": np.dtype("<i8"),
        "groups": np.dtype("<i8"),
        "keys": np.dtype("u1"),
        "key_ends": np.dtype("<i8"),
        "captions": np.dtype("u1"),
        "caption_ends": np.dtype("<i8"),
        "captioned": np.dtype("?"),
    }
    places: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    groups: np.ndarray
    keys: np.ndarray
    key_ends: np.ndarray
    captions: np.ndarray
    caption_ends: np.ndarray
    captioned: np.ndarray

    def __init__(self, folder: Path, meta: dict[str, Any], keep: Any = None) -> None:
        self.folder, self.meta, self._keep = folder, meta, keep
        self._map()

    def _map(self) -> None:
        for name, dtype in self.ARRAYS.items():
            setattr(self, name, _mapped(self.folder / f"{name}.bin", dtype))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self.ARRAYS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        try:
            self._map()
            # read last, as the folder may be replaced meanwhile
            whole = json.loads((self.folder / META).read_text())["identity"] == self.meta["identity"]
        except (OSError, ValueError, LookupError, TypeError):
            whole = False
        if not whole:
            raise UserError(
                f"the index {self.folder} is not there or is another one by now, as some of the files that it is of were changed "
                "meanwhile; run the command again."
            )

    def name(self, i: int) -> str:
        """Name of image `i`."""
        return os.fsdecode(self.names[int(self.ends[i - 1]) if i else 0 : int(self.ends[i])].tobytes())

    def all_names(self) -> list[str]:
        """Names of all images."""
        return [os.fsdecode(text) for text in _split(self.names, self.ends)]

    def group_texts(self) -> tuple[list[str], list[str | None]]:
        """Keys and captions of the groups."""
        keys = [os.fsdecode(text) for text in _split(self.keys, self.key_ends)]
        if not len(self.caption_ends):
            return keys, [None] * len(keys)
        texts = zip(self.captioned.tolist(), _split(self.captions, self.caption_ends), strict=True)
        return keys, [text.decode("utf-8", "surrogatepass") if there else None for there, text in texts]

    @classmethod
    def load(cls, folder: Path, identity: str, keep: Any = None) -> Index | None:
        """The index of a folder; None if there is none, or one of other files, or it is damaged."""
        try:
            meta = json.loads((folder / META).read_text())
            if meta["identity"] != identity or not {"fingerprint", "class_names", "skipped", "remarks"} <= set(meta):
                return None
            found = cls(folder, meta, keep)
            count, groups = len(found.places), len(found.key_ends)
            whole = {len(found.sizes), len(found.ends), len(found.labels) or count, len(found.groups) or count} == {
                count
            }
            whole &= {len(found.caption_ends) or groups, len(found.captioned) or groups} == {groups}
            whole &= int(found.ends[-1]) == len(found.names)
            for ends, texts in ((found.key_ends, found.keys), (found.caption_ends, found.captions)):
                whole &= (int(ends[-1]) if len(ends) else 0) == len(texts)
            return found if whole else None
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
            return None


def _mapped(file: Path, dtype: np.dtype[Any]) -> np.ndarray:
    base, shape = dtype.base, dtype.shape
    size = file.stat().st_size
    if size % dtype.itemsize:
        raise ValueError(f"{file} is cut off")
    if size == 0:  # which cannot be mapped
        return np.zeros((0, *shape), base)
    return np.memmap(file, base, "r", shape=(size // dtype.itemsize, *shape)).view(np.ndarray)


def _split(texts: np.ndarray, ends: np.ndarray) -> Iterator[bytes]:
    data, start = texts.tobytes(), 0
    for end in ends.tolist():
        yield data[start:end]
        start = end


class _Writer:
    """An index that is being made: everything is appended to files, so that memory does not grow with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {name: (folder / f"{name}.bin").open("wb") for name in Index.ARRAYS}
        self._files["codes"] = (folder / "codes.bin").open("wb")
        self._ends = dict.fromkeys(("names", "keys", "captions"), 0)

    def append(self, name: str, array: np.ndarray) -> None:
        """More of an array of numbers."""
        self._files[name].write(np.ascontiguousarray(array).tobytes())

    def texts(self, name: str, ends: str, texts: Sequence[bytes]) -> None:
        """More texts, and where they end."""
        self._files[name].write(b"".join(texts))
        found = self._ends[name] + np.cumsum([len(text) for text in texts], dtype="<i8")
        self._ends[name] = int(found[-1]) if len(found) else self._ends[name]
        self.append(ends, found)

    def label(self, table: np.ndarray) -> None:
        """Write the labels: class numbers int64 by the codes that were appended."""
        self._files["codes"].flush()
        codes = _mapped(self.folder / "codes.bin", np.dtype("<i4"))
        for start in range(0, len(codes), CHUNK):
            self.append("labels", table[codes[start : start + CHUNK]].astype("<i8"))

    def text(self, name: str, ends: str, i: int) -> str:
        """One of the texts."""
        for file in self._files.values():
            file.flush()
        where = _mapped(self.folder / f"{ends}.bin", Index.ARRAYS[ends])
        start, end = int(where[i - 1]) if i else 0, int(where[i])
        return os.fsdecode(_mapped(self.folder / f"{name}.bin", Index.ARRAYS[name])[start:end].tobytes())

    def drop(self, name: str) -> None:
        """Leave an array empty after all."""
        self._files[name].truncate(0)

    def close(self) -> None:
        """No more is to come."""
        for file in self._files.values():
            file.close()
        (self.folder / "codes.bin").unlink(missing_ok=True)


class _Scratch:
    """A folder that goes when it is used no more; pickled, it is a copy's to look at, not to remove."""

    def __init__(self) -> None:
        self._temporary: Any = tempfile.TemporaryDirectory(prefix="rcg-index-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_temporary": None}


def _short_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(key), digest_size=8).digest(), "big")


class PackedSource(ImageSource):
    """The images in some files of one format, in the order of files and of what each holds. Use `open_source`.

    Args:
        place: what was asked for, for messages.
        blobs: the files.
        format: what they are.
        min_size, progress, threads: see `open_source`.
    """

    def __init__(
        self,
        place: str,
        name: str,
        blobs: list[Blob],
        format: Format,
        *,
        min_size: int = 8,
        progress: bool = True,
        threads: int | None = None,
    ) -> None:
        self.name, self.format = name, format
        self.blobs = blobs
        self.index = self._open(place, min_size, progress, threads)
        meta = self.index.meta
        self.skipped = [(str(path), str(reason)) for path, reason in meta["skipped"]]
        self.sizes = self.index.sizes
        self.fingerprint = meta["fingerprint"]
        self.labels = self.index.labels if len(self.index.labels) else None
        self.class_names = meta["class_names"]
        self.remarks = [(str(what), str(todo)) for what, todo in meta["remarks"]]

    def _open(self, place: str, min_size: int, progress: bool, threads: int | None) -> Index:
        what = {
            **self.format.identity(),
            "min_size": min_size,
            "version": INDEX_VERSION,
            "rules": [PIL.__version__, DECODE_VERSION],
        }
        key = json.dumps([what, [blob.where for blob in self.blobs]])
        stamps = json.dumps([key, [[blob.size, blob.stamp] for blob in self.blobs]])
        identity = hashlib.sha256(stamps.encode()).hexdigest()
        folder = user_cache_dir() / "indexed" / hashlib.sha256(key.encode()).hexdigest()[:20]
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock: Any = FileLock(folder.with_suffix(".lock"))
            lock.acquire()
            lock.release()
        except (OSError, NotImplementedError):  # the latter of older filelocks, where the system has no locks
            lock = nullcontext()  # `verify` says that nothing can be remembered
        with lock:  # one process looks, the others wait
            if (found := Index.load(folder, identity)) is not None:
                return found
            building = False
            try:
                with atomic_folder(folder) as temporary:
                    building = True
                    self._build(temporary, identity, place, min_size, progress, threads)
                    building = False
            except (OSError, UserError) as e:
                number = e.errno if isinstance(e, OSError) else None
                if building and number not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT):
                    raise
                why = e.strerror or e if isinstance(e, OSError) else "no folder can be there"
                warnings.warn(
                    f"what lies where in {place} cannot be remembered in {folder.parent} ({why}), so it is looked "
                    "for again next time; set RCG_CACHE_DIR to a folder that can be written.",
                    stacklevel=5,
                )
            if (found := Index.load(folder, identity)) is not None:
                return found
        scratch = _Scratch()
        self._build(scratch.folder, identity, place, min_size, progress, threads)
        found = Index.load(scratch.folder, identity, scratch)
        assert found is not None
        return found

    def _build(
        self, folder: Path, identity: str, place: str, min_size: int, progress: bool, threads: int | None
    ) -> None:
        """Look at everything, and write the index into a folder."""
        writer = _Writer(folder)
        try:
            meta = self._look(writer, place, min_size, progress, threads)
        finally:
            writer.close()
            forget()
        (folder / META).write_text(json.dumps({"identity": identity, **meta}))

    def _look(self, writer: _Writer, place: str, min_size: int, progress: bool, threads: int | None) -> dict[str, Any]:
        skipped = list[tuple[str, str]]()
        codes: dict[str | None, int] = {}
        used = set[int]()
        digest = hashlib.sha256()
        seen = usable = groups = dark = bare = 0
        unread, beside, bare_one = Counter[str](), Counter[str](), ""
        grouped, captioned, mixed = True, False, False
        owners = list[tuple[np.ndarray, int]]()
        names, good, digests = list[str](), list[np.ndarray](), list[bytes]()  # where they are to be arranged
        many = len(self.blobs) > 1
        for number, part, content in self._contents(many and progress):
            unread += Counter(content.unread)
            beside += Counter(content.beside)
            if not self.format.arranges:
                start = f"{self.blobs[number].name}/"
                self._one_set(place, [name.removeprefix(start) for name in content.names])
            found = self._check(self.blobs[number], part, content, progress and not many, threads)
            reasons = [unusable(one.reason, one.width, one.height, min_size) for one in found]
            skipped += [(n, r) for n, r in zip(content.names, reasons, strict=True) if r is not None]
            kept = np.flatnonzero(np.array([r is None for r in reasons], bool))
            seen, usable = seen + len(found), usable + len(kept)
            dark += sum(found[i].dark for i in kept)
            writer.append("places", content.places[kept])
            writer.append("sizes", np.array([(found[i].width, found[i].height) for i in kept], "<i4").reshape(-1, 2))
            if self.format.arranges:
                names += content.names
                good.append(kept + (seen - len(found)))
                digests += [found[i].digest for i in kept]
            else:
                encoded = [os.fsencode(content.names[i]) for i in kept]
                writer.texts("names", "ends", encoded)
                digest.update(
                    b"".join(n + b"\0" + found[i].digest for n, i in zip(encoded, kept.tolist(), strict=True))
                )
                given = content.classes if content.classes is not None else [None] * len(found)
                numbers = np.array([codes.setdefault(given[i], len(codes)) for i in kept.tolist()], "<i4")
                used.update(np.unique(numbers).tolist())
                writer.append("codes", numbers)
                without = np.flatnonzero(numbers == codes.get(None, -1))
                if len(without):
                    bare, bare_one = bare + len(without), bare_one or content.names[int(kept[without[0]])]
            if content.keys is None:
                grouped = False
            if grouped and content.keys is not None:
                keys = content.keys
                order = {key: i for i, key in enumerate(dict.fromkeys(keys[i] for i in kept))}
                writer.append("groups", np.array([groups + order[keys[i]] for i in kept], "<i8"))
                writer.texts("keys", "key_ends", [os.fsencode(key) for key in order])
                said = content.captions or {}
                writer.texts(
                    "captions", "caption_ends", [said.get(k, "").encode("utf-8", "surrogatepass") for k in order]
                )
                writer.append("captioned", np.array([k in said for k in order], bool))
                captioned |= any(k in said for k in order)
                owners.append((np.array([_short_hash(key) for key in order], np.uint64), number))
                groups += len(order)
        if not seen and unread:
            raise none_read(place, unread)
        if not seen:
            raise UserError(f"{place} holds no images; {self._ways()}.")
        if not usable:
            raise UserError(f"none of the {seen} images in {place} can be used ({listing(skipped)}).")
        if grouped:
            self._one_owner(owners, writer)
        for name, wanted in (("groups", grouped), ("keys", grouped), ("key_ends", grouped),
                             ("captions", grouped and captioned), ("caption_ends", grouped and captioned),
                             ("captioned", grouped and captioned)):  # fmt: skip
            if not wanted:
                writer.drop(name)
        if self.format.arranges:
            names, by_name, mixed = self.format.arrange(names, np.concatenate(good).tolist())
            self._one_set(place, names)
            encoded = [os.fsencode(name) for name in names]
            writer.texts("names", "ends", encoded)
            digest.update(b"".join(n + b"\0" + d for n, d in zip(encoded, digests, strict=True)))
            given = by_name if by_name is not None else [None] * len(names)
            numbers = np.array([codes.setdefault(name, len(codes)) for name in given], "<i4")
            used.update(np.unique(numbers).tolist())
            writer.append("codes", numbers)
        table, class_names = self._classes(list(codes), used)
        if class_names:
            writer.label(table)
        remarks = remarks_on(usable, dark=dark, mixed=mixed, unread=unread)
        if 0 < bare < usable:
            remarks.append((f"{bare:,} of {usable:,} images have no class, such as {bare_one}, so none has a label",
                            "give every image its class, or leave those without out"))  # fmt: skip
        if beside:
            remarks.append((f"images beside others of their key are left out: {by_ending(beside)}",
                            "name what is an image by KEY.ENDING or KEY.NUMBER.ENDING"))  # fmt: skip
        return {
            "fingerprint": digest.hexdigest()[:32],
            "class_names": class_names,
            "skipped": skipped,
            "remarks": remarks,
        }

    @staticmethod
    def _one_set(place: str, names: Sequence[str]) -> None:
        """Raise `UserError` if the images lie in folders of several splits."""
        if len(splits := split_folders(names)) > 1:
            raise UserError(several_splits(place, splits) + "unpack it and give one of them, or pack each by itself.")

    def _contents(self, progress: bool) -> Iterator[tuple[int, int, Content]]:
        """Number of the file, number of the part, what is there."""
        bar = tqdm(self.blobs, desc=f"checking {self.name}", unit="file", disable=not progress)
        for number, blob in enumerate(bar):
            for part, content in enumerate(self.format.contents(blob, number)):
                yield number, part, content

    def _one_owner(self, owners: list[tuple[np.ndarray, int]], writer: _Writer) -> None:
        """Raise `UserError` if a group lies in several files."""
        if len(owners) < 2:
            return
        hashes = np.concatenate([some for some, _ in owners])
        files = np.repeat([number for _, number in owners], [len(some) for some, _ in owners])
        order = np.argsort(hashes, kind="stable")
        twice = np.flatnonzero((hashes[order][1:] == hashes[order][:-1]) & (files[order][1:] != files[order][:-1]))
        if not len(twice):
            return
        first, second = order[twice[0]], order[twice[0] + 1]
        raise UserError(
            f"the key {writer.text('keys', 'key_ends', int(first))!r} is in {self.blobs[files[first]].name} and in "
            f"{self.blobs[files[second]].name}, so that its positives are split; keep sets of shards in folders of their own."
        )

    def _ways(self) -> str:
        return "make it again" if self.format.kind != "zip" else "put images into it (.jpg, .png, .webp, …)"

    def _check(self, blob: Blob, part: int, content: Content, progress: bool, threads: int | None) -> list[Finding]:
        """Decode what is not known yet."""
        places = content.places
        stamps = list(
            zip(places["size"].tolist(), (blob.stamp + places["offset"] + places["extra"]).tolist(), strict=True)
        )

        def look(i: int) -> Finding:
            if (size := int(places[i]["size"])) < 0:
                return Finding(b"", 0, 0, REASONS[size])
            try:
                return inspect_bytes(self.format.read(blob, places[i]))
            except DecodeError as e:
                return Finding(b"", 0, 0, str(e))
            except OSError as e:
                raise UserError(f"{blob.where} cannot be read ({e.strerror or e}); run the command again.") from None

        root = Path(blob.where) / f"part {part}" if part else Path(blob.where)
        return verify(root, content.names, progress=progress, threads=threads, stamps=stamps, look=look)

    def _classes(self, names: list[str | None], used: set[int]) -> tuple[np.ndarray, list[str]]:
        """The class number, int64, of each code, and the names of the classes; none unless every image has one."""
        if any(names[i] is None for i in used):
            return np.zeros(0, np.int64), []
        order = self.format.class_names() or sort_classes([str(names[i]) for i in sorted(used)])
        number = {name: i for i, name in enumerate(order)}
        if strange := [name for i in sorted(used) if (name := str(names[i])) not in number]:
            raise UserError(
                f"some files of {self.name} name their classes and others do not (the label {strange[0]!r} is none of "
                "these); open them apart, or save the data set again."
            )
        return np.array([number.get(str(name), -1) for name in names], np.int64), order

    def label_digest(self) -> str:
        """See `ImageSource.label_digest`; where names tell the classes, the fingerprint does."""
        if self.labels is None or self.format.arranges:
            return ""
        digest = hashlib.sha256(json.dumps(self.class_names).encode() + self.labels.astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    def groups(self) -> Groups | None:
        """See `ImageSource.groups`."""
        if not len(self.index.groups):
            return self.format.groups(self.blobs, self.index.all_names())
        keys, captions = self.index.group_texts()
        return Groups(np.asarray(self.index.groups), keys, captions)

    def image(self, index: int) -> Image.Image:
        """See `ImageSource.image`.

        Raises:
            UserError: the file was changed since it was opened, or cannot be reached.
        """
        place = self.index.places[index]
        blob = self.blobs[place["file"]]
        try:
            return decode(self.format.read(blob, place))
        except (OSError, DecodeError) as e:
            raise UserError(
                f"{self.index.name(index)} in {blob.where} could be read when it was opened but cannot be now ({e}); "
                "put the file back, or run the command again."
            ) from None


def sort_classes(names: Sequence[str]) -> list[str]:
    """Classes in order: by number if all are numbers, else by name."""
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=int)
    return sorted(names)
