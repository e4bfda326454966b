"""Sources of many images in few files: shards, zip archives, tables.

What lies where is found out once, each image is decoded once to see whether it can be used, and both are kept as arrays in
the user's cache folder. Opening the source again looks at the files' sizes and times and maps these arrays into memory:
neither time nor memory grows with the number of images until they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from rcg.core.arrays import load_array
from rcg.core.errors import UserError
from rcg.core.files import atomic_folder
from rcg.data.blobs import Blob
from rcg.data.decode import DECODE_VERSION, DecodeError, decode
from rcg.data.image_source import Groups, ImageSource, listing, unusable
from rcg.data.verify import Finding, inspect_bytes, user_cache_dir, verify

INDEX_VERSION = 1
"""Raise it when an index holds other things than before, so that it is made anew."""
PLACE = np.dtype(
    [("file", "<i4"), ("offset", "<i8"), ("stored", "<i8"), ("size", "<i8"), ("crc", "<u4"), ("packed", "?")]
)
"""Where an image is: number of the file, offset and bytes there, bytes of the image file; CRC-32 and whether it is
compressed, of a zip. Bytes −1: there are none."""
NO_BYTES = "its row holds no bytes"


@dataclass
class Content:
    """What one file holds.

    Attributes:
        names: of the images, unique over all files of a source.
        places: `PLACE` [N].
        classes: name of each image's class; None where it has none.
        keys: which images belong together: name of each image's group; None where nothing says so.
        captions: text of the groups that have one.
    """

    names: list[str]
    places: np.ndarray
    classes: Sequence[str | None] | None = None
    keys: list[str] | None = None
    captions: dict[str, str] | None = None


class Format(ABC):
    """A kind of file that holds many images.

    Attributes:
        kind: its name.
    """

    kind: str

    def identity(self) -> dict[str, Any]:
        """What the index depends on besides the files, as JSON."""
        return {"kind": self.kind}

    def prepare(self, blob: Blob) -> Blob:
        """The file that images are read from; most formats are read where they lie."""
        return blob

    @abstractmethod
    def content(self, blob: Blob, number: int) -> Content:
        """What a prepared file holds, which is number `number`. `UserError`: it is damaged or unsafe."""

    def arrange(self, names: list[str]) -> tuple[list[str], list[str] | None]:
        """Names of all images as they count for the fingerprint, and the class of each where the names tell it."""
        return names, None

    def class_names(self) -> list[str] | None:
        """All classes in the data's own order; None sorts those that occur."""
        return None

    def groups(self, blobs: list[Blob], names: list[str]) -> Groups | None:
        """Which images belong together, where `Content` does not say so."""
        return None

    def read(self, blob: Blob, place: Any) -> bytes:
        """The bytes of an image file. `OSError` or `DecodeError`: they cannot be read or unpacked."""
        return blob.read(int(place["offset"]), int(place["size"]))


@dataclass
class Index:
    """What is known of a source: arrays, mapped from the cache folder where that can be, and the rest.

    Attributes:
        places: `PLACE` [N], of the usable images.
        sizes: int32 [N, 2].
        labels: int64 [N], or of length 0.
        names: uint8, the names one after the other; `ends` int64 [N] says where each ends.
        groups: int64 [N], or of length 0.
        meta: fingerprint, class_names, skipped.
        folder: where it is kept, if it is.
        texts: keys and captions of the groups, where they are not kept in a folder.
    """

    places: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    groups: np.ndarray
    meta: dict[str, Any]
    folder: Path | None = None
    texts: dict[str, Any] | None = None

    ARRAYS = ("places", "sizes", "labels", "names", "ends", "groups")

    def name(self, i: int) -> str:
        """Name of image `i`."""
        return os.fsdecode(self.names[int(self.ends[i - 1]) if i else 0 : int(self.ends[i])].tobytes())

    def all_names(self) -> list[str]:
        """Names of all images."""
        data, start, found = self.names.tobytes(), 0, []
        for end in self.ends.tolist():
            found.append(os.fsdecode(data[start:end]))
            start = end
        return found

    def group_texts(self) -> dict[str, Any]:
        """`keys` and `captions` of the groups; they are read when they are asked for."""
        if self.texts is None:
            assert self.folder is not None
            self.texts = json.loads((self.folder / "groups.json").read_text())
        return self.texts

    def save(self, folder: Path, identity: str) -> None:
        """Keep it. `OSError` where that cannot be."""
        with atomic_folder(folder) as temporary:
            for name in self.ARRAYS:
                np.save(temporary / f"{name}.npy", getattr(self, name))
            (temporary / "groups.json").write_text(json.dumps(self.texts))
            (temporary / "meta.json").write_text(json.dumps({"identity": identity, **self.meta}))

    @classmethod
    def load(cls, folder: Path, identity: str) -> Index | None:
        """The index of a folder; None if there is none, or one of other files, or it is damaged."""
        try:
            meta = json.loads((folder / "meta.json").read_text())
            if meta.pop("identity") != identity:
                return None
            arrays: dict[str, Any] = {
                name: load_array(folder / f"{name}.npy", "remove it", mode="r").view(np.ndarray) for name in cls.ARRAYS
            }
            found = cls(**arrays, meta=meta, folder=folder)
            count = len(found.places)
            lengths = {len(found.sizes), len(found.ends), len(found.labels) or count, len(found.groups) or count}
            whole = lengths == {count} and found.places.dtype == PLACE and int(found.ends[-1]) == len(found.names)
            return found if whole and {"fingerprint", "class_names", "skipped"} <= set(meta) else None
        except (OSError, ValueError, KeyError, EOFError, IndexError, TypeError, AttributeError):
            return None


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
        self.blobs = [format.prepare(blob) for blob in blobs]
        self.index = self._open(place, min_size, progress, threads)
        meta = self.index.meta
        self.skipped = [(str(path), str(reason)) for path, reason in meta["skipped"]]
        self.sizes = self.index.sizes
        self.fingerprint = meta["fingerprint"]
        self.labels = self.index.labels if len(self.index.labels) else None
        self.class_names = meta["class_names"]

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
        except OSError:
            lock = nullcontext()  # `verify` says that nothing can be remembered
        with lock:  # one process looks, the others wait
            if (found := Index.load(folder, identity)) is not None:
                return found
            index = self._build(place, min_size, progress, threads)
            try:
                index.save(folder, identity)
            except OSError as e:
                warnings.warn(
                    f"what lies where in {place} cannot be remembered in {folder.parent} ({e.strerror or e}), so it is looked "
                    "for again next time; set RCG_CACHE_DIR to a folder that can be written.",
                    stacklevel=5,
                )
            return Index.load(folder, identity) or index  # mapped, so that what it was made from is let go

    def _build(self, place: str, min_size: int, progress: bool, threads: int | None) -> Index:
        names, skipped = list[str](), list[tuple[str, str]]()
        places, sizes, good, digests = list[np.ndarray](), list[np.ndarray](), list[np.ndarray](), list[bytes]()
        codes: dict[str | None, int] = {}
        classes, keys = list[int](), list[str]()
        captions: dict[str, str] = {}
        grouped = 0
        holders: dict[str, str] = {}
        many = len(self.blobs) > 1
        for number, blob in enumerate(
            tqdm(self.blobs, desc=f"checking {self.name}", unit="file", disable=not (progress and many))
        ):
            content = self.format.content(blob, number)
            if content.keys is not None:
                for key in dict.fromkeys(content.keys):
                    if holders.setdefault(key, blob.name) != blob.name:
                        raise UserError(
                            f"the key {key!r} is in {holders[key]} and in {blob.name}, so that its positives are split; "
                            "keep sets of shards in folders of their own."
                        )
                keys += content.keys
                grouped += 1
            captions |= content.captions or {}
            found = self._check(blob, content, progress and not many, threads)
            names += content.names
            places.append(content.places)
            sizes.append(np.array([(one.width, one.height) for one in found], np.int32).reshape(-1, 2))
            reasons = [unusable(one.reason, one.width, one.height, min_size) for one in found]
            skipped += [(n, r) for n, r in zip(content.names, reasons, strict=True) if r is not None]
            good.append(np.array([r is None for r in reasons], bool))
            digests += [one.digest for one in found]
            given = content.classes if content.classes is not None else [None] * len(found)
            classes += [codes.setdefault(name, len(codes)) for name in given]
        if not names:
            raise UserError(f"{place} holds no images; {self._ways()}.")
        kept = np.flatnonzero(np.concatenate(good))
        if not len(kept):
            raise UserError(f"none of the {len(names)} images in {place} can be used ({listing(skipped)}).")
        names, by_name = self.format.arrange(names)
        if by_name is not None:
            codes = {name: i for i, name in enumerate(dict.fromkeys(by_name))}
            classes = [codes[name] for name in by_name]
        digest = hashlib.sha256()
        encoded = [os.fsencode(names[i]) for i in kept]
        for name, i in zip(encoded, kept.tolist(), strict=True):
            digest.update(name + b"\0" + digests[i])
        labels, class_names = self._label(np.array(classes, np.int64)[kept], list(codes))
        numbers, texts = np.zeros(0, np.int64), None
        if grouped == len(self.blobs):
            order = {key: i for i, key in enumerate(dict.fromkeys(keys[i] for i in kept))}
            numbers = np.array([order[keys[i]] for i in kept], np.int64)
            texts = {"keys": list(order), "captions": [captions.get(key) for key in order] if captions else None}
        return Index(
            np.concatenate(places)[kept],
            np.concatenate(sizes)[kept],
            labels,
            np.frombuffer(b"".join(encoded), np.uint8),
            np.cumsum([len(name) for name in encoded], dtype=np.int64),
            numbers,
            {"fingerprint": digest.hexdigest()[:32], "class_names": class_names, "skipped": skipped},
            texts=texts,
        )

    def _ways(self) -> str:
        return "make it again" if self.format.kind != "zip" else "put images into it (.jpg, .png, .webp, …)"

    def _check(self, blob: Blob, content: Content, progress: bool, threads: int | None) -> list[Finding]:
        """Decode what is not known yet."""
        places = content.places
        stamps = list(zip(places["size"].tolist(), (blob.stamp + places["offset"]).tolist(), strict=True))

        def look(i: int) -> Finding:
            if places[i]["size"] < 0:
                return Finding(b"", 0, 0, NO_BYTES)
            try:
                return inspect_bytes(self.format.read(blob, places[i]))
            except DecodeError as e:
                return Finding(b"", 0, 0, str(e))
            except OSError as e:
                raise UserError(f"{blob.where} cannot be read ({e.strerror or e}); run the command again.") from None

        return verify(Path(blob.where), content.names, progress=progress, threads=threads, stamps=stamps, look=look)

    def _label(self, codes: np.ndarray, names: list[str | None]) -> tuple[np.ndarray, list[str]]:
        """Labels and the names of the classes; none unless every image has one."""
        used = [names[i] for i in np.unique(codes)]
        if any(name is None for name in used):
            return np.zeros(0, np.int64), []
        known = [str(name) for name in used]
        order = self.format.class_names() or sort_classes(known)
        number = {name: i for i, name in enumerate(order)}
        table = np.array([number.get(str(name), -1) for name in names], np.int64)
        return table[codes], order

    def groups(self) -> Groups | None:
        """See `ImageSource.groups`."""
        if not len(self.index.groups):
            return self.format.groups(self.blobs, self.index.all_names())
        texts = self.index.group_texts()
        keys = texts["keys"]
        return Groups(np.asarray(self.index.groups), keys, texts["captions"] or [None] * len(keys))

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
