"""Samples beside their nearest training images: which to show, and a picture of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rcg.core.errors import UserError
from rcg.core.pictures import to_pil
from rcg.core.rng import derive_seed
from rcg.eval.evaluate import Examined

SHOWN = 8
"""Samples that are shown of each kind: those nearest to a training image, and others at random."""
LEAST_SIDE = 64  # pixels of a picture on the sheet; small ones are enlarged by a whole factor


@dataclass(frozen=True)
class Match:
    """A sample and the training images that are nearest to it.

    Attributes:
        number: of the sample in its set.
        picture: the sample.
        distances: to the training images, in the extractor's features, rising.
        train_numbers: theirs, in their set.
        train_files: their files, None where they are of no files.
        train_pictures: the training images.
        near_copy: whether the sample counts as a near-copy; None where no held-out images say when it does.
    """

    number: int
    picture: Image.Image
    distances: list[float]
    train_numbers: list[int]
    train_files: list[str | None]
    train_pictures: list[Image.Image]
    near_copy: bool | None

    def to_json(self) -> dict[str, Any]:
        """What a report holds of it."""
        return {
            "sample": self.number,
            "near_copy": self.near_copy,
            "train": [
                {"number": number, "distance": distance} | ({} if file is None else {"file": file})
                for number, distance, file in zip(self.train_numbers, self.distances, self.train_files, strict=True)
            ],
        }


def find_matches(examined: Examined, count: int = SHOWN) -> tuple[list[Match], list[Match]]:
    """The `count` samples that are nearest to a training image, the nearest first, and as many others at random.

    Args:
        examined: of `Evaluator.examine(…, neighbors=True)`.
        count: of each; fewer where there are not so many.

    Raises:
        UserError: a set is a stream that has passed, so that its images cannot be shown.
    """
    sides, trained = examined.sides, examined.train
    assert sides.train is not None
    assert sides.generated.numbers is not None
    assert trained is not None
    found, _ = sides.nearest()
    order = np.argsort(found.distances[:, 0], kind="stable")
    rest = order[count:]
    chosen = np.random.default_rng(derive_seed(sides.seed, len(order))).permutation(len(rest))[:count]
    rows = [*order[:count].tolist(), *np.sort(rest[chosen]).tolist()]
    numbers = sides.generated.numbers[rows].tolist()
    samples = examined.generated.pick(numbers)
    pictures = trained.pick(found.numbers[rows].ravel().tolist())
    if samples is None or pictures is None:
        raise UserError("images of a stream cannot be shown beside their neighbours; give folders or lists of batches.")
    told: dict[str, Any] = next((s for name, s in examined.report["settings"].items() if name.startswith("copies")), {})
    threshold = told.get("threshold")
    k, faces = found.numbers.shape[1], to_pil(pictures)
    matches = [
        Match(
            number=number,
            picture=picture,
            distances=found.distances[row].tolist(),
            train_numbers=found.numbers[row].tolist(),
            train_files=[trained.file_of(n) for n in found.numbers[row].tolist()],
            train_pictures=faces[i * k : (i + 1) * k],
            near_copy=None if threshold is None else bool(found.distances[row, 0] < threshold),
        )
        for i, (row, number, picture) in enumerate(zip(rows, numbers, to_pil(samples), strict=True))
    ]
    return matches[:count], matches[count:]


def match_sheet(groups: Sequence[tuple[str, Sequence[Match]]]) -> Image.Image:
    """One picture: a row for each sample, which stands on the left, its nearest training images with distances beside it.

    Args:
        groups: a title and the samples under it.
    """
    font, line, gap = ImageFont.load_default(), 14, 6
    some = next(match for _, matches in groups for match in matches)
    factor = max(1, -(-LEAST_SIDE // min(some.picture.size)))
    width, height = (side * factor for side in some.picture.size)
    columns = 1 + max(len(match.train_pictures) for _, matches in groups for match in matches)
    rows = sum(len(matches) for _, matches in groups)
    size = (
        gap + columns * (width + gap) + 2 * gap,
        gap + sum(line + gap for _, matches in groups if matches) + rows * (height + line + gap),
    )
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)

    def put(picture: Image.Image, text: str, column: int, top: int) -> None:
        left = gap + column * (width + gap) + (2 * gap if column else 0)
        sheet.paste(picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (left, top))
        draw.text((left, top + height + 1), text, fill=(60, 60, 60), font=font)

    top = gap
    for title, matches in groups:
        if not matches:
            continue
        draw.text((gap, top), title, fill=(0, 0, 0), font=font)
        top += line + gap
        for match in matches:
            put(match.picture, f"{'copy? ' if match.near_copy else ''}{match.number}", 0, top)
            for i, (picture, distance) in enumerate(zip(match.train_pictures, match.distances, strict=True)):
                put(picture, f"{distance:.3g}", 1 + i, top)
            top += height + line + gap
    return sheet
