"""Sets of labelled images, real or generated, whose classes go by the same names; and parts of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rcg.core.errors import UserError
from rcg.core.rng import derive_seed
from rcg.core.schema import read_json
from rcg.data.image_source import ImageSource
from rcg.eval.arrays import ArraySource
from rcg.eval.classifier import Pictures
from rcg.eval.images import ImageSet, Resize, open_images, path_of

MEMORY = 2 << 30
"""Bytes of decoded images of one set that are kept; a larger set is decoded whenever it is needed."""
MANIFEST, SAMPLING = "images.jsonl", "sampling.json"
NUMBERED = re.compile(r"(\d+)\.\w+")
_PART = 11


class LabelledSet:
    """Images of one size, each with a class.

    Args:
        spec: what `rcg.eval.images.open_images` takes. Classes are those of the source (sub-folders, `class` or `.cls` in
            shards, labels of an `.npz`), of a manifest `images.jsonl` (a line for each image, with `file` and `class`), or
            of the `sampling.json` that `rcg-sample --class-labels` left.
        what: what messages call it.
        class_names: of the labels; None: its own.
        image_size, resize: see `rcg.eval.images.ImageSet`.
        numbered: `class_names` are the labels of an `.npz`, not names.

    Attributes:
        images: the images, in a fixed order.
        labels: int64 [N], numbers in `class_names`.
        class_names: of the labels.
        side: of the images, in pixels.
        fingerprint: changes with images and labels.
        numbered: the class names are the labels of an `.npz`.

    Raises:
        UserError: images without classes, of unknown ones, that differ in size or are no squares; or an `.npz` whose labels may be
            names of classes as well as numbers of others.
    """

    def __init__(
        self,
        spec: str | Path,
        what: str,
        class_names: Sequence[str] | None = None,
        *,
        image_size: int | None = None,
        resize: Resize = "antialiased",
        numbered: bool = False,
    ) -> None:
        source = open_images(spec)
        self.spec = str(spec)
        self.images = ImageSet(source, what, image_size=image_size, resize=resize)
        self.numbered = numbered if class_names is not None else isinstance(source, ArraySource)
        names = _classes(source, path_of(spec), what, class_names, numbered)
        names = [names[i] for i in self.images.indices]
        self.class_names = list(class_names) if class_names is not None else sorted(set(names))
        if unknown := sorted(set(names) - set(self.class_names)):
            known = ", ".join(self.class_names[:5]) + (" …" if len(self.class_names) > 5 else "")
            raise UserError(
                f"the {what} images in {spec} have a class {unknown[0]!r}, which the real ones have not ({known}); rename its "
                "folder."
            )
        number = {name: i for i, name in enumerate(self.class_names)}
        self.labels = np.array([number[name] for name in names], np.int64)
        width, _, height = (self.images.size or "").partition("×")
        if width != height:
            raise UserError(f"the {what} images in {spec} are no squares ({self.images.size} px); give --image-size.")
        self.side = int(width)
        text = f"{source.fingerprint} {self.images.size} {self.images.resize} {self.class_names}"
        digest = hashlib.sha256(text.encode() + self.images.indices.astype("<i8").tobytes())
        if source.labels is None or source.label_digest():  # else images of other classes would have other names
            digest.update(self.labels.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()[:16]
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, progress: bool = True) -> None:
        """Decode all images into memory, where they have room there (`MEMORY`)."""
        if self._kept is not None or len(self) * 3 * self.side**2 > MEMORY:
            return
        kept = torch.empty(len(self), 3, self.side, self.side, dtype=torch.uint8)
        done = 0
        with tqdm(total=len(self), desc=f"reading {self.images.name}", unit=" images", disable=not progress) as bar:
            for part in self.images.batches(500):
                kept[done : done + len(part)] = part
                done += len(part)
                bar.update(len(part))
        self._kept = kept

    def pixels(self, rows: np.ndarray) -> Tensor:
        """The images of these numbers, uint8 [B, 3, S, S]."""
        if self._kept is not None:
            return self._kept[torch.from_numpy(rows)]
        return self.images.pick(rows.tolist())

    def pictures(self, rows: np.ndarray | None = None) -> Pictures:
        """All images, or those of these numbers."""
        if rows is None:
            return Pictures(self.pixels, self.labels)
        return Pictures(lambda places: self.pixels(rows[places]), self.labels[rows])


def joined(parts: Sequence[tuple[LabelledSet, np.ndarray]]) -> Pictures:
    """Parts of several sets, one after the other."""
    ends = np.cumsum([len(rows) for _, rows in parts])
    labels = np.concatenate([each.labels[rows] for each, rows in parts])

    def pixels(places: np.ndarray) -> Tensor:
        owner = np.searchsorted(ends, places, side="right")
        side = parts[0][0].side
        found = torch.empty(len(places), 3, side, side, dtype=torch.uint8)
        for i, (each, rows) in enumerate(parts):
            mine = np.flatnonzero(owner == i)
            if len(mine):
                begin = int(ends[i]) - len(rows)
                found[torch.from_numpy(mine)] = each.pixels(rows[places[mine] - begin])
        return found

    return Pictures(pixels, labels)


def part_of(labels: np.ndarray, counts: Sequence[int], seed: int) -> np.ndarray:
    """So many images of each class, at random by the seed; a smaller part is in every larger one.

    Args:
        labels: int64 [N].
        counts: of each class; at most as many as there are.
        seed: of the draw.

    Returns:
        Sorted numbers, int64.
    """
    found = []
    for label, count in enumerate(counts):
        rows = np.flatnonzero(labels == label)
        if count > len(rows):
            raise UserError(
                f"{count} images of class number {label} are needed, but there are {len(rows)}; make more of it."
            )
        found.append(np.random.default_rng(derive_seed(seed, _PART, label)).permutation(rows)[:count])
    return np.sort(np.concatenate(found)).astype(np.int64)


def _classes(source: ImageSource, spec: Path, what: str, known: Sequence[str] | None, numbered: bool) -> list[str]:
    """Name of each image's class."""
    files: list[str] = getattr(source, "files", [])
    if source.labels is not None:
        names = [source.class_names[label] for label in source.labels]
        different = set(names)
        if known is not None and all(name.isdecimal() for name in different):
            if not different <= set(known):
                return [_named(int(name), known, spec) for name in names]  # classes that were given by number
            if isinstance(source, ArraySource) and not numbered and max(map(int, different)) < len(known):
                for name in sorted(different):
                    if (other := known[int(name)]) != name:
                        raise UserError(
                            f"the labels in {spec} may be names of classes or their numbers ({name} is one's name and the number of "
                            f"{other!r}); put the images into folders of their classes."
                        )
        return names
    if files and (manifest := spec / MANIFEST).is_file():
        said = _manifest(manifest)
        if missing := [file for file in files if file not in said]:
            raise UserError(f"{manifest} does not name {missing[0]}; complete it or delete it.")
        return [said[file] for file in files]
    if files and known is not None and (spec / SAMPLING).is_file():
        drawn = read_json(spec / SAMPLING).get("settings", {}).get("class_labels")
        matches = [NUMBERED.fullmatch(file) for file in files]
        if isinstance(drawn, list) and drawn:
            # pictures without a number are the sheet of samples, which is left out
            return [_named(drawn[int(m[1]) % len(drawn)] if m else drawn[0], known, spec) for m in matches]
    raise UserError(
        f"the {what} images in {spec} have no classes; put each into the folder of its class, or name them in {MANIFEST}."
    )


def _named(number: Any, known: Sequence[str], spec: Path) -> str:
    if not isinstance(number, int) or not 0 <= number < len(known):
        raise UserError(f"{spec} has images of class number {number}, but there are {len(known)} classes.")
    return known[number]


def _manifest(file: Path) -> dict[str, str]:
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        return {str(line["file"]): str(line["class"]) for line in lines}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged; each of its lines must be JSON with file and class.") from None
