"""Where images come from: a folder, shards, zip archives, tables, or an embedded set. Start at `open_source`."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rcg.core.errors import UserError
from rcg.data.decode import DecodeError, decode
from rcg.data.embedded.sets import WAYS, open_embedded
from rcg.data.image_source import Groups, classes_of, group, is_image, keys_of, listing, unusable
from rcg.data.image_source import ImageSource as ImageSource
from rcg.data.packed import PackedSource
from rcg.data.places import find
from rcg.data.shards import captions_of
from rcg.data.verify import verify


class FolderSource(ImageSource):
    """The images in a folder and all its sub-folders, in the order of their relative paths.

    Labels exist when every image lies in a sub-folder: the first component of its path is its class. Hidden files
    and folders are passed over. Use `open_source`.
    """

    def __init__(self, folder: Path, *, min_size: int = 8, progress: bool = True, threads: int | None = None) -> None:
        self.folder = folder.resolve()
        self.name = self.folder.name or str(self.folder)
        files = sorted(_image_files(self.folder))
        if not files:
            raise UserError(
                f"the folder {folder} holds no images (files ending in .jpg, .png, .webp, .bmp, .gif, .tif, …); {WAYS}."
            )
        self.files: list[str] = []
        self.skipped = []
        sizes: list[tuple[int, int]] = []
        digest = hashlib.sha256()
        for file, found in zip(files, verify(self.folder, files, progress=progress, threads=threads), strict=True):
            if (reason := unusable(found.reason, found.width, found.height, min_size)) is not None:
                self.skipped.append((file, reason))
            else:
                self.files.append(file)
                sizes.append((found.width, found.height))
                digest.update(os.fsencode(file) + b"\0" + found.digest)
        if not self.files:
            raise UserError(f"none of the {len(files)} images in {folder} can be used ({listing(self.skipped)}).")
        self.sizes = np.array(sizes, np.int32)
        self.fingerprint = digest.hexdigest()[:32]
        self.labels, self.class_names = None, []
        names = classes_of(self.files)
        if names is not None:
            self.class_names = sorted(set(names))
            number = {name: i for i, name in enumerate(self.class_names)}
            self.labels = np.array([number[name] for name in names], np.int64)
        self.mixed = names is None and any("/" in file for file in self.files)

    def groups(self) -> Groups | None:
        """Files `key.0.jpg`, `key.1.jpg`, … belong together; `key.json` or `key.txt` beside them holds their caption.

        Raises:
            UserError: such a file cannot be read or is damaged.
        """
        keys = keys_of(self.files)
        if keys is None:
            return None
        numbers, unique = group(keys)
        return Groups(numbers, unique, captions_of(self.folder, unique))

    def image(self, index: int) -> Image.Image:
        """See `ImageSource.image`.

        Raises:
            UserError: the file has vanished or was damaged since the folder was opened.
        """
        path = self.folder / self.files[index]
        try:
            return decode(path.read_bytes())
        except (OSError, DecodeError) as e:
            raise UserError(
                f"the image {path} could be read when the folder was opened but cannot be now ({e}); "
                "put it back, or run the command again."
            ) from None


def open_source(
    spec: str | Path, *, min_size: int = 8, progress: bool = True, threads: int | None = None
) -> ImageSource:
    """Open a set of images.

    Args:
        spec: a folder (flat, nested, or one sub-folder for each class); WebDataset shards (`.tar`), zip archives, Parquet
            or Arrow files: one, a folder of them, a pattern with `*`, or the folder of a `save_to_disk`; the first three
            also at an address, such as `s3://bucket/shards`; or an embedded set:
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
    packed = find(text)
    source: ImageSource
    if packed is not None:
        source = PackedSource(text, packed.name, packed.blobs, packed.format, **options)
    else:
        source = FolderSource(Path(text).expanduser(), **options)
    if int(os.environ.get("RANK", "0")) == 0:
        if source.skipped:
            total = len(source) + len(source.skipped)
            warnings.warn(
                f"{len(source.skipped)} of {total} images in {text} are skipped: {listing(source.skipped)}.",
                stacklevel=2,
            )
        if isinstance(source, FolderSource) and source.mixed:
            warnings.warn(
                f"{text} has images both in sub-folders and beside them, so the sub-folders are not taken for "
                "classes and the images have no labels; move every image into the folder of its class to have them.",
                stacklevel=2,
            )
    return source


def _image_files(root: Path) -> Iterator[str]:
    """Relative paths, with `/`, of what looks like an image below `root`. A link to a parent folder is not followed."""

    def walk(folder: str, prefix: str, parents: frozenset[tuple[int, int]]) -> Iterator[str]:
        status = os.stat(folder)  # noqa: PTH116 (strings: a million Path objects take their time)
        me = (status.st_dev, status.st_ino)
        if me in parents:
            return
        folders: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif is_image(entry.name):
                    yield prefix + entry.name
        for name in folders:
            yield from walk(f"{folder}/{name}", f"{prefix}{name}/", parents | {me})

    yield from walk(str(root), "", frozenset())
