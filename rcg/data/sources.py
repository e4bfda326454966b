"""Where images come from: a folder, or the embedded procedural set. Start at `open_source`."""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from rcg.core.errors import UserError
from rcg.data.decode import DecodeError, decode
from rcg.data.shapes import CLASS_NAMES, SHAPES_VERSION, draw, labels
from rcg.data.verify import verify

IMAGE_SUFFIXES = frozenset(
    f".{ending}"
    for ending in "jpg jpeg jpe jfif png webp bmp dib gif tif tiff ppm pgm pbm pnm tga jp2 avif".split()  # noqa: SIM905
)
"""Endings of files that are taken for images; the file's content decides the rest."""

_WAYS = "give a folder of images, or the embedded set as `shapes` or `shapes:n=2000,size=32,seed=0`"


class ImageSource(ABC):
    """Numbered RGB images, in an order that never changes, and perhaps a class for each."""

    name: str
    """A name to show to people."""
    fingerprint: str
    """Changes when the usable images, their order or their relative paths change; not when the folder moves."""
    labels: np.ndarray | None
    """int64 [N] in [0, len(class_names)), or None."""
    class_names: list[str]
    """Sorted; empty without labels."""
    skipped: list[tuple[str, str]]
    """(path, reason) of files that looked like images but cannot be used."""
    sizes: np.ndarray
    """int32 [N, 2]: width and height of each image, in pixels."""

    def __len__(self) -> int:
        return len(self.sizes)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Image `index` as an upright RGB picture of its own size."""


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
                f"the folder {folder} holds no images (files ending in .jpg, .png, .webp, .bmp, .gif, .tif, …); "
                f"{_WAYS}."
            )
        self.files: list[str] = []
        self.skipped = []
        sizes: list[tuple[int, int]] = []
        digest = hashlib.sha256()
        for file, found in zip(files, verify(self.folder, files, progress=progress, threads=threads), strict=True):
            if found.reason is not None:
                self.skipped.append((file, found.reason))
            elif min(found.width, found.height) < min_size:
                self.skipped.append((file, f"only {found.width}×{found.height} px, less than {min_size}"))
            else:
                self.files.append(file)
                sizes.append((found.width, found.height))
                digest.update(os.fsencode(file) + b"\0" + found.digest)
        if not self.files:
            raise UserError(f"none of the {len(files)} images in {folder} can be used ({_listing(self.skipped)}).")
        self.sizes = np.array(sizes, np.int32)
        self.fingerprint = digest.hexdigest()[:32]
        self.labels, self.class_names = None, []
        nested = ["/" in file for file in self.files]
        if all(nested):
            names = [file.split("/", 1)[0] for file in self.files]
            self.class_names = sorted(set(names))
            number = {name: i for i, name in enumerate(self.class_names)}
            self.labels = np.array([number[name] for name in names], np.int64)
        self.mixed = any(nested) and not all(nested)

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


class ShapesSource(ImageSource):
    """The embedded procedural set: see `rcg.data.shapes`. Use `open_source`."""

    def __init__(self, n: int = 2000, size: int = 32, seed: int = 0) -> None:
        self.seed = seed
        self.name = f"shapes:n={n},size={size},seed={seed}"
        self.fingerprint = hashlib.sha256(f"{self.name} version {SHAPES_VERSION}".encode()).hexdigest()[:32]
        self.labels = labels(n)
        self.class_names = list(CLASS_NAMES)
        self.skipped = []
        self.sizes = np.full((n, 2), size, np.int32)

    def image(self, index: int) -> Image.Image:
        """See `ImageSource.image`."""
        return Image.fromarray(draw(self.seed, index, int(self.sizes[index, 0])))


def open_source(
    spec: str | Path, *, min_size: int = 8, progress: bool = True, threads: int | None = None
) -> ImageSource:
    """Open a set of images.

    Args:
        spec: a folder (flat, nested, or one sub-folder for each class), or `shapes[:n=…,size=…,seed=…]`: the embedded
            set with `n` images of `size` px. A folder that is called `shapes` is meant by `./shapes`.
        min_size: images with a side of fewer pixels are skipped.
        progress: show a progress bar while the images of a folder are checked for the first time.
        threads: decoding threads; default all cores.

    Returns:
        The source. Files that cannot be used are listed in `skipped`, and a warning names the first ten.

    Raises:
        UserError: there is no such folder, no usable image in it, or the options after `shapes:` are wrong.
    """
    text = str(spec)
    if text == "shapes" or text.startswith("shapes:"):
        return ShapesSource(**_shapes_options(text))
    folder = Path(text).expanduser()
    if not folder.exists():
        raise UserError(f"there is no folder {text!r}; {_WAYS}.")
    if not folder.is_dir():
        raise UserError(f"{text} is a file, not a folder; {_WAYS}.")
    source = FolderSource(folder, min_size=min_size, progress=progress, threads=threads)
    if int(os.environ.get("RANK", "0")) == 0:
        if source.skipped:
            total = len(source) + len(source.skipped)
            warnings.warn(
                f"{len(source.skipped)} of {total} images in {folder} are skipped: {_listing(source.skipped)}.",
                stacklevel=2,
            )
        if source.mixed:
            warnings.warn(
                f"{folder} has images both in sub-folders and beside them, so the sub-folders are not taken for "
                "classes and the images have no labels; move every image into the folder of its class to have them.",
                stacklevel=2,
            )
    return source


def _listing(skipped: list[tuple[str, str]]) -> str:
    first = "; ".join(f"{path} ({reason})" for path, reason in skipped[:10])
    return first + (f"; and {len(skipped) - 10} more" if len(skipped) > 10 else "")


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
                elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                    yield prefix + entry.name
        for name in folders:
            yield from walk(f"{folder}/{name}", f"{prefix}{name}/", parents | {me})

    yield from walk(str(root), "", frozenset())


_SHAPES_LIMITS = {"n": (1, 100_000_000), "size": (8, 4096), "seed": (0, 2**63 - 1)}


def _shapes_options(spec: str) -> dict[str, int]:
    options: dict[str, int] = {}
    for part in filter(None, spec.partition(":")[2].split(",")):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in _SHAPES_LIMITS or key in options:
            raise UserError(
                f"{spec!r}: {key!r} is {'given twice' if key in options else 'no option of the embedded set'}; "
                "write shapes:n=2000,size=32,seed=0."
            )
        low, high = _SHAPES_LIMITS[key]
        if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
            raise UserError(f"{spec!r}: {key} must be a whole number from {low} to {high}, not {value!r}.")
        options[key] = int(value)
    return options
