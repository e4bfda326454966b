"""What every set of images is to those who read it."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from rcg.core.errors import UserError
from rcg.data.decode import BRIGHTEN

IMAGE_SUFFIXES = frozenset(
    f".{ending}"
    for ending in "jpg jpeg jpe jfif png webp bmp dib gif tif tiff ppm pgm pbm pnm tga jp2 avif".split()  # noqa: SIM905
)
"""Endings of files that are taken for images; the file's content decides the rest."""
OTHER_SUFFIXES = frozenset(
    f".{ending}"
    for ending in "heic heif jxl jxr psd xcf exr hdr dds svg dcm ico pcx sgi j2k jpx apng mpo".split()  # noqa: SIM905
    + "raw dng cr2 cr3 nef nrw arw orf rw2 raf pef srw".split()  # noqa: SIM905
)
"""Endings of images that are not read, so that somebody is told."""
ARCHIVES = frozenset((".zip", ".tar", ".tgz", ".7z", ".rar"))
"""Of what is not looked into within an archive or a sub-folder."""
MIXED = (
    "images lie both in sub-folders and beside them, so the sub-folders are not taken for classes and there are no labels",
    "move every image into the folder of its class to have them",
)

NUMBERED = re.compile(r"(.+)\.\d+\.[^./]+")
"""A file of a group: key, number, ending."""


def is_image(name: str) -> bool:
    """Whether a file's name ends as that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 (strings: a million Path objects take time)


def count_unread(names: Iterable[str], archives: bool = False) -> Counter[str]:
    """How many of these files, hidden ones aside, are images of which endings that are not read; and `archives`."""
    found = Counter[str]()
    for name in names:
        ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 (as above)
        if (ending in OTHER_SUFFIXES or (archives and ending in ARCHIVES)) and not is_hidden(name):
            found[ending] += 1
    return found


def by_ending(counts: Mapping[str, int]) -> str:
    """How many files of which endings, in words."""
    most = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return f"{sum(counts.values()):,} ({', '.join(f'{count:,} {ending}' for ending, count in most[:5])}{', …' * (len(most) > 5)})"


def left_out(unread: Mapping[str, int]) -> list[tuple[str, str]]:
    """What `count_unread` found, as `ImageSource.remarks`."""
    images = {ending: count for ending, count in unread.items() if ending in OTHER_SUFFIXES}
    inner = {ending: count for ending, count in unread.items() if ending in ARCHIVES}
    said = [(f"image files with endings that are not read are left out: {by_ending(images)}",
             "convert them to .png or .jpg to have them")] * bool(images)  # fmt: skip
    return said + [(f"archives within it are not looked into: {by_ending(inner)}", "unpack them")] * bool(inner)


def none_read(place: str | Path, unread: Mapping[str, int]) -> UserError:
    """What to say of a place that holds nothing else."""
    what, todo = left_out(unread)[0]
    return UserError(f"{place} holds no images that are read ({what}); {todo}.")


def remarks_on(total: int, *, dark: int, mixed: bool, unread: Mapping[str, int]) -> list[tuple[str, str]]:
    """`ImageSource.remarks` of any files.

    Args:
        total: usable images.
        dark: those of them that are nearly black, see `rcg.data.decode.is_dark`.
        mixed: whether some lie in folders and others beside these.
        unread: see `count_unread`.
    """
    said = left_out(unread)
    if 2 * dark > total:
        said.append((f"{dark:,} of {total:,} images are nearly black or far too dark", BRIGHTEN))
    if mixed:
        said.append(MIXED)
    return said


def is_named_grid(path: str) -> bool:
    """Whether a file is called like a sheet of samples: `grid.png`, `grid_….png` (any image ending)."""
    stem = PurePosixPath(path).stem.lower()
    return stem == "grid" or stem.startswith("grid_")


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder that it lies in, is passed over."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def image_files(root: Path, unread: Counter[str] | None = None) -> Iterator[str]:
    """Relative paths, with `/`, of what looks like an image below `root`. A link to a parent folder is not followed.

    Images of endings that are not read, and archives in sub-folders, are counted in `unread`.
    """

    def walk(folder: str, prefix: str, parents: frozenset[tuple[int, int]]) -> Iterator[str]:
        status = os.stat(folder)  # noqa: PTH116 (strings: a million Path objects take their time)
        me = (status.st_dev, status.st_ino)
        if me in parents:
            return
        folders, others = list[str](), list[str]()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif is_image(entry.name):
                    yield prefix + entry.name
                else:
                    others.append(entry.name)
        if unread is not None:
            unread.update(count_unread(others, archives=prefix != ""))
        for name in folders:
            yield from walk(f"{folder}/{name}", f"{prefix}{name}/", parents | {me})

    yield from walk(str(root), "", frozenset())


def sub_folders(root: Path) -> list[str]:
    """The names of its folders, hidden ones and links aside."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not is_hidden(e.name))


def leaves_folder(name: str) -> bool:
    """Whether the name of a member of an archive leads out of the archive."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or bool(re.match("[A-Za-z]:", name))


def unusable(reason: str | None, width: int, height: int, min_size: int) -> str | None:
    """Why an image of this size in pixels cannot be used, if so."""
    if reason is None and min(width, height) < min_size:
        return f"only {width}×{height} px, less than {min_size}"
    return reason


def classes_of(files: Sequence[str]) -> list[str] | None:
    """The first folder of each path, if all lie in one."""
    return [file.split("/", 1)[0] for file in files] if all("/" in file for file in files) else None


def keys_of(files: Sequence[str]) -> list[str] | None:
    """The key of each file: what comes before `.NUMBER.ENDING`; None where no file is numbered."""
    found = [NUMBERED.fullmatch(file) for file in files]
    if not any(found):
        return None
    return [m[1] if m else os.path.splitext(file)[0] for m, file in zip(found, files, strict=True)]  # noqa: PTH122


def listing(skipped: list[tuple[str, str]]) -> str:
    """The first ten (path, reason) of images that cannot be used, in words."""
    first = "; ".join(f"{path} ({reason})" for path, reason in skipped[:10])
    return first + (f"; and {len(skipped) - 10} more" if len(skipped) > 10 else "")


@dataclass(frozen=True)
class Groups:
    """Which images belong together: several of one caption (or of one representation), positives of each other.

    Attributes:
        numbers: int64 [N]: group of each image, in [0, number of groups), every group in use.
        keys: name of each group.
        captions: text of each group; None where it has none.
    """

    numbers: np.ndarray
    keys: list[str]
    captions: list[str | None]

    def identities(self) -> np.ndarray:
        """int64 [groups]: equal where captions are, so that one that occurs twice is one; without captions, by key."""
        names = [
            f"k {key}" if text is None else f"c {text}" for key, text in zip(self.keys, self.captions, strict=True)
        ]
        number = {name: i for i, name in enumerate(sorted(set(names)))}
        return np.array([number[name] for name in names], np.int64)


def group(keys: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Number of each image's group, int64 [N], and the groups' keys in the order of their first images."""
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], np.int64), list(number)


def divide(rows: np.ndarray, families: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Two parts of images such that no family is in both, unless there is one family only.

    Args:
        rows: int64 [n], numbers of images, in random order.
        families: int64 [N], see `ImageSource.families`.
        first: images of the first part, in [1, n); as near to it as families allow.

    Returns:
        Numbers of images: `rows[:first]` and `rows[first:]` where all stand alone.
    """
    _, begin, number = np.unique(families[rows], return_index=True, return_inverse=True)
    order = np.argsort(begin[number], kind="stable")  # a family where its first image was
    borders = np.flatnonzero(np.diff(begin[number][order])) + 1
    cut = first if not len(borders) else int(borders[np.abs(borders - first).argmin()])
    return rows[order[:cut]], rows[order[cut:]]


class ImageSource(ABC):
    """Numbered RGB images, in an order that never changes, and perhaps a class for each."""

    name: str
    """A name to show to people."""
    fingerprint: str
    """Changes when the usable images, their order or their relative paths change; not when the folder moves."""
    labels: np.ndarray | None
    """int64 [N] in [0, len(class_names)), or None."""
    class_names: list[str]
    """Sorted, or in the data set's own order; empty without labels."""
    skipped: list[tuple[str, str]]
    """(path, reason) of files that looked like images but cannot be used."""
    sizes: np.ndarray
    """int32 [N, 2]: width and height of each image, in pixels."""
    remarks: Sequence[tuple[str, str]] = ()
    """What else there is to know of it, such as images that were left out, as a clause, and what to do, another."""

    def __len__(self) -> int:
        return len(self.sizes)

    def label_digest(self) -> str:
        """Changes when the labels or the names of their classes do; empty without labels, and where `fingerprint` tells."""
        return ""

    def groups(self) -> Groups | None:
        """Which images belong together; None where every image stands alone."""
        return None

    def families(self) -> np.ndarray:
        """int64 [N]: equal for images that must not be on both sides of a test, which are those of a group.

        A class that is a single group (files `cat.0.jpg`, `cat.1.jpg`, …) says nothing: its images stand alone.

        Raises:
            UserError: see `groups`.
        """
        groups, alone = self.groups(), np.arange(len(self))
        if groups is None or self.labels is None:
            return alone if groups is None else groups.numbers
        lowest, highest = np.full(len(self.class_names), len(self)), np.full(len(self.class_names), -1)
        np.minimum.at(lowest, self.labels, groups.numbers)
        np.maximum.at(highest, self.labels, groups.numbers)
        return np.where((lowest == highest)[self.labels], len(self) + alone, groups.numbers)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Image `index` as an upright RGB picture of its own size."""
