"""The known ways to measure wrongly, noticed: other sizes, JPEG, too few images, part of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rcg.core.errors import UserError
from rcg.eval.references import ImageStats, Origin

LOSSY = ("jpg", "jpeg", "jpe", "jfif", "webp", "avif", "jp2", "jpeg2000", "mpo")
ALIKE = 0.1  # how much full classes may differ in size, as a share
CUT = 0.6  # a last class below this share of the others is taken for one that was cut
SAME = 1e-6  # of the median distance: below it two images are the same
NAMED = 3  # classes that a sentence names


def check_sizes(generated: str | None, reference: str | None) -> None:
    """Refuse to compare images of different sizes, which an extractor blurs differently.

    Args:
        generated, reference: "32×32" and the like, None where unknown.
    """
    if generated is not None and reference is not None and generated != reference:
        raise UserError(
            f"The generated images are {generated} px and the reference {reference} px, so they do not compare; "
            "--image-size S frames all images alike (statistics must be made with it)."
        )


def check_resize(generated: Origin, reference: Origin) -> None:
    """Refuse to compare images that were resized in different ways."""
    ways = (generated.resize, reference.resize)
    if None not in ways and "none" not in ways and ways[0] != ways[1]:
        raise UserError(
            f"The generated images were resized ({ways[0]}) in another way than the reference ({ways[1]}), so they do "
            "not compare; choose the reference's with --resize, or make its statistics again."
        )


def lossy_files(formats: Mapping[str, int]) -> int:
    """How many files there are whose format may change pixels."""
    return sum(number for ending, number in formats.items() if ending in LOSSY)


def format_notes(generated: Origin, reference: Origin) -> list[str]:
    """What is to be said of file formats."""
    notes = []
    if number := lossy_files(reference.formats):
        notes.append(
            f"{number} of the reference's files are JPEG or the like: what compression does to them is part of every "
            "distance, so give lossless files if there are any, and compare only figures against these very files."
        )
    if number := lossy_files(generated.formats):
        notes.append(f"{number} of the generated files are JPEG or the like; save samples as PNG.")
    return notes


def _are_numbers(classes: Mapping[str, int]) -> bool:
    """Whether classes go by numbers, as in an `.npz`, which do not compare with names."""
    return all(name.isdecimal() for name in classes)


def class_notes(classes: Mapping[str, int] | None, what: str, others: Mapping[str, int] | None = None) -> list[str]:
    """What is to be said of a labelled set: how even its classes are, and whether it is only part of a set.

    A set sorted by class that was cut short has full classes, one smaller, and none or empty ones after it.

    Args:
        classes: images of each class, in the set's order (sorted by name); None without labels.
        what: "reference" or "generated".
        others: the classes of the other set, if it has any.
    """
    if classes is None:
        return []
    numbers = list(classes.values())
    most, present = max(numbers), [n for n in numbers if n]
    notes = []
    absent = [name for name, n in (others or {}).items() if n and not classes.get(name)]
    if absent and _are_numbers(classes) == _are_numbers(others or {}):
        some = ", ".join(absent[:NAMED]) + (" …" if len(absent) > NAMED else "")
        notes.append(
            f"The {what} images have {len(present)} classes and lack {len(absent)} that the other side has ({some}); a "
            "part of the classes is no fair sample, so take all of them."
        )
    full = present[:-1]
    if len(full) > 1 and min(full) >= (1 - ALIKE) * max(full) and present[-1] < CUT * min(full):
        last = [name for name, n in classes.items() if n][-1]
        notes.append(
            f"The {what} images look like the beginning of a sorted set: {last}, their last class, has {present[-1]} "
            f"images, the others {min(full)} or more; draw a part at random, as --limit does."
        )
    if len(present) < len(numbers):
        notes.append(f"{len(numbers) - len(present)} of the {len(numbers)} classes of the {what} images are empty.")
    elif len(numbers) > 1 and not notes:
        even = "evenly" if min(numbers) >= (1 - ALIKE) * most else f"unevenly, {min(numbers)} to {most} each"
        notes.append(f"The {what} images have {len(numbers)} classes, filled {even}.")
    return notes


def count_notes(generated: ImageStats, reference: ImageStats, figure: str, extrapolated: bool = False) -> list[str]:
    """What is to be said of too few images for a Fréchet distance called `figure`, which may be extrapolated, too."""
    dim, notes = len(generated.mu), []
    for what, number in (("generated", generated.n), ("reference", reference.n)):
        if number is not None and number <= dim:
            way = ", or extrapolate with --fid-infinity" if what == "generated" and not extrapolated else ""
            notes.append(
                f"There are no more {what} images ({number}) than features ({dim}): {figure} is biased upwards; compare it "
                f"only with figures of equal counts{way}."
            )
    return notes


def repeat_notes(counts: Sequence[int]) -> list[str]:
    """What is to be said of the means over repeats with so many images each."""
    if len(set(counts)) == 1:
        return []
    return [
        f"The repeats have {min(counts)} to {max(counts)} images, and figures such as FID depend on how many there are, so "
        "their means and deviations compare with nothing; give folders with equally many."
    ]


def precision_notes(generated: Origin, reference: Origin) -> list[str]:
    """What is to be said of sides that were measured in different arithmetic."""
    if None in (generated.precision, reference.precision) or generated.precision == reference.precision:
        return []
    return [
        f"The generated images are measured in {generated.precision} and the reference in {reference.precision}: that "
        "alone moves the features by 1 to 2 %; measure both alike."
    ]


def overlap_notes(distances: np.ndarray) -> list[str]:
    """What is to be said of held-out images that are among the training images.

    Args:
        distances: [m], of each to its nearest training image.
    """
    number = int((distances <= SAME * np.median(distances)).sum())
    if not number:
        return []
    return [
        f"{number} of the {len(distances)} held-out images are training images themselves, which makes copies harder to see; "
        "leave them out."
    ]


def comparison_notes(generated: Origin, reference: Origin | None) -> list[str]:
    """All that is to be said of how two sets were made, or of one alone."""
    notes = class_notes(generated.classes, "generated", None if reference is None else reference.classes)
    if reference is None:
        return notes
    notes += class_notes(reference.classes, "reference", generated.classes)
    return notes + format_notes(generated, reference) + precision_notes(generated, reference)
