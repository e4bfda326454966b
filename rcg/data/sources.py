"""Where images come from: a folder, shards, zip archives, tables, or an embedded set. Start at `open_source`."""

from __future__ import annotations

import errno
import hashlib
import os
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rcg.core.errors import UserError
from rcg.data.decode import DecodeError, decode
from rcg.data.embedded.sets import WAYS, open_embedded
from rcg.data.image_source import (
    Groups,
    classes_of,
    group,
    image_files,
    is_hidden,
    is_image,
    keys_of,
    listing,
    none_read,
    remarks_on,
    sub_folders,
    unusable,
)
from rcg.data.image_source import ImageSource as ImageSource
from rcg.data.packed import PackedSource
from rcg.data.places import Loose, Packed, find
from rcg.data.repositories import several_splits, split_folders
from rcg.data.shards import captions_of
from rcg.data.verify import Finding, inspect_bytes, verify


class FileSource(ImageSource):
    """Images of which each is a file, in the order of their paths.

    Labels exist when every image lies in a sub-folder: the first component of its path is its class.

    Args:
        place: where they lie, for messages.
        files: sorted paths, with `/`.
        found: what is known of each.
        min_size: see `open_source`.
        unread: see `count_unread`.
    """

    def __init__(
        self, place: str, files: Sequence[str], found: Sequence[Finding], min_size: int, unread: Mapping[str, int]
    ) -> None:
        self.place = place
        self.files: list[str] = []
        self.skipped = []
        sizes: list[tuple[int, int]] = []
        digest, dark = hashlib.sha256(), 0
        for file, one in zip(files, found, strict=True):
            if (reason := unusable(one.reason, one.width, one.height, min_size)) is not None:
                self.skipped.append((file, reason))
            else:
                self.files.append(file)
                sizes.append((one.width, one.height))
                digest.update(os.fsencode(file) + b"\0" + one.digest)
                dark += one.dark
        if not self.files:
            raise UserError(f"none of the {len(files)} images in {place} can be used ({listing(self.skipped)}).")
        self.sizes = np.array(sizes, np.int32)
        self.fingerprint = digest.hexdigest()[:32]
        self.labels, self.class_names = None, []
        names = classes_of(self.files)
        if names is not None:
            self.class_names = sorted(set(names))
            number = {name: i for i, name in enumerate(self.class_names)}
            self.labels = np.array([number[name] for name in names], np.int64)
        mixed = names is None and any("/" in file for file in self.files)
        self.remarks: list[tuple[str, str]] = remarks_on(len(self.files), dark=dark, mixed=mixed, unread=unread)

    @abstractmethod
    def read(self, file: str) -> bytes | None:
        """The bytes of a file, which need be no image; None if it is not there. `OSError`: it cannot be read."""

    def groups(self) -> Groups | None:
        """Files `key.0.jpg`, `key.1.jpg`, … belong together; `key.json` or `key.txt` beside them holds their caption.

        Raises:
            UserError: such a file cannot be read or is damaged.
        """
        keys = keys_of(self.files)
        if keys is None:
            return None
        numbers, unique = group(keys)
        try:
            return Groups(numbers, unique, captions_of(self.read, self.place, unique))
        except OSError as e:
            raise UserError(f"a caption in {self.place} cannot be read ({e.strerror or e}); run it again.") from None

    def image(self, index: int) -> Image.Image:
        """See `ImageSource.image`.

        Raises:
            UserError: the file has vanished or was damaged since the source was opened.
        """
        try:
            data = self.read(self.files[index])
            if data is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            return decode(data)
        except (OSError, DecodeError) as e:
            raise UserError(
                f"the image {self.place.rstrip('/')}/{self.files[index]} could be read when the folder was opened but "
                f"cannot be now ({e}); put it back, or run the command again."
            ) from None


class FolderSource(FileSource):
    """The images in a folder and all its sub-folders, or some (`only`, by path; `unread`: others beside them). Hidden ones are
    passed over. One sub-folder that is called like a split, such as `train`, is the folder that is meant. Use `open_source`."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str | None = None,
        only: Sequence[str] | None = None,
        unread: Mapping[str, int] | None = None,
        min_size: int = 8,
        progress: bool = True,
        threads: int | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.name = name or self.folder.name or str(self.folder)
        others = Counter(unread)
        files = sorted(image_files(self.folder, others) if only is None else only)
        if not files and others:
            raise none_read(folder, others)
        if not files:
            raise UserError(
                f"the folder {folder} holds no images (files ending in .jpg, .png, .webp, .bmp, .gif, .tif, …); {WAYS}."
            )
        splits = split_folders(files) if only is None else []
        if len(splits) > 1:
            raise UserError(several_splits(folder, splits) + f"give one of them, such as '{folder}/{splits[0]}'.")
        if splits and all(file.startswith(f"{splits[0]}/") for file in files):
            self.folder /= splits[0]
            files = [file[len(splits[0]) + 1 :] for file in files]
        found = verify(self.folder, files, progress=progress, threads=threads)
        super().__init__(str(self.folder), files, found, min_size, others)
        if only is None and self.labels is not None and (empty := set(sub_folders(self.folder)) - {*self.class_names}):
            named = ", ".join(sorted(empty)[:3]) + f" and {len(empty) - 3} more" * (len(empty) > 3)
            self.remarks.append((f"folders without a usable image are no classes: {named}", "fill or remove them"))

    def read(self, file: str) -> bytes | None:
        """See `FileSource.read`."""
        try:
            return (self.folder / file).read_bytes()
        except FileNotFoundError:
            return None


class RemoteFolderSource(FileSource):
    """The images below an address, each an object of its own: the same source as a copy in a folder. Use `open_source`.

    Size and version of each come from the listing, so that nothing is asked of single ones that are known.
    """

    def __init__(self, found: Loose, *, min_size: int = 8, progress: bool = True, threads: int | None = None) -> None:
        self.name, self.blobs = found.name, found.files or {}
        files = sorted(found.only or (file for file in self.blobs if is_image(file) and not is_hidden(file)))
        stamps = [(self.blobs[file].size, self.blobs[file].stamp) for file in files]

        def look(i: int) -> Finding:
            try:
                return inspect_bytes(self.blobs[files[i]].all())
            except FileNotFoundError as e:  # listed, but gone
                return Finding(b"", 0, 0, e.strerror or str(e))
            except OSError as e:  # an image that is left out for it would be there again the next time
                raise UserError(
                    f"{self.blobs[files[i]].where} cannot be read ({e.strerror or e}); run the command again."
                ) from None

        root = Path(found.place)
        known = verify(root, files, progress=progress, threads=threads, stamps=stamps, look=look)
        super().__init__(found.place, files, known, min_size, found.unread)

    def read(self, file: str) -> bytes | None:
        """See `FileSource.read`."""
        try:
            return self.blobs[file].all() if file in self.blobs else None
        except FileNotFoundError:
            return None


def open_source(
    spec: str | Path, *, min_size: int = 8, progress: bool = True, threads: int | None = None
) -> ImageSource:
    """Open a set of images.

    Args:
        spec: a folder (flat, nested, or one sub-folder for each class); WebDataset shards (`.tar`), zip archives, Parquet
            or Arrow files: one, a folder of them, a pattern with `*`, or the folder of a `save_to_disk`; all but Arrow
            also at an address, such as `s3://bucket/shards`; `hf:NAME[:SPLIT[:COLUMN]]`, a data set of the Hugging Face
            Hub or a folder in its layout, read without downloading it; or an embedded set:
            `shapes[:n=…,size=…,seed=…]`, pictures drawn by formula, or `clothing[:split=…,n=…,size=…,seed=…]`,
            photographs. A folder that is called `shapes` is meant by `./shapes`. `:image=COLUMN,label=COLUMN` behind a
            table says which columns are meant.
        min_size: images with a side of fewer pixels are skipped.
        progress: show a progress bar while images are checked, for the first time.
        threads: decoding threads; default all cores.

    Returns:
        The source. Files that cannot be used are listed in `skipped`, and a warning names the first ten.

    Raises:
        UserError: there is no such folder, no usable image in it, or the options of an embedded set are wrong.
    """
    text = str(spec)
    if (embedded := open_embedded(text)) is not None:
        return embedded
    options: dict[str, Any] = {"min_size": min_size, "progress": progress, "threads": threads}
    found = find(text)
    source: ImageSource
    if isinstance(found, Packed):
        source = PackedSource(text, found.name, found.blobs, found.format, **options)
    elif found.files is not None:
        source = RemoteFolderSource(found, **options)
    else:
        name = None if found.place == text else found.name
        source = FolderSource(Path(found.place), name=name, only=found.only, unread=found.unread, **options)
    if os.environ.get("RANK", "0") == "0":
        if source.skipped:
            total = len(source) + len(source.skipped)
            warnings.warn(
                f"{len(source.skipped)} of {total} images in {text} are skipped: {listing(source.skipped)}.",
                stacklevel=2,
            )
        if found.ignored:
            more = f" and {len(found.ignored) - 3} more" if len(found.ignored) > 3 else ""
            what = "the single images" if isinstance(found, Loose) else f"the {found.format.kind} files"
            warnings.warn(
                f"{text} holds files of several kinds; {what} are taken, and {', '.join(found.ignored[:3])}{more} ignored: give "
                "what you mean by its own path, or keep the kinds in folders of their own.",
                stacklevel=2,
            )
        for what, todo in source.remarks:
            warnings.warn(f"{text}: {what}; {todo}.", stacklevel=2)
    return source
