"""The data: how many images, how large, of which classes, which cannot be used, and which repeat."""

from __future__ import annotations

import numpy as np

from rcg.check.findings import Part
from rcg.data.decode import BRIGHTEN
from rcg.data.sources import ImageSource
from rcg.eval.files import names_of
from rcg.recipe.look import FEW_IMAGES, LEAST_IMAGES, Compared, compare, describe, find_repeated

SECONDS = 10.0
"""Of opening images to compare them."""
NAMED = 3  # examples in a list
REPEATED_SHARE = 0.01
UNEVEN = 10.0
"""The largest class over the smallest from which classes count as uneven."""
SMALL = 16
"""A shorter side of fewer pixels leaves little to learn."""


def check_data(source: ImageSource, compared: Compared | None = None) -> Part:
    """Look at a source.

    Args:
        source: the images.
        compared: what `rcg.recipe.look.compare` saw of it; by default it is asked here.
    """
    compared = compared or compare(source, SECONDS)
    look = describe(source, compared)
    first_of = {digest: place for place, digest in reversed(list(enumerate(compared.digests)))}
    equal = np.array([first_of[digest] for digest in compared.digests])
    places = np.arange(len(equal))
    similar = find_repeated(compared.hashes)
    exact, near = equal < places, (similar >= 0) & (equal == places)
    part = Part("data", look["name"])
    part.figures = {
        "images": look["count"],
        "unusable files": look["broken"],
        "shorter side, px (10 %, 50 %, 90 %)": list(look["short_side"]),
        "nearly square": look["square"],
        "classes": look["classes"],
        "smallest class": look["smallest_class"],
        "compared": look["compared"],
        "exact duplicates": int(exact.sum()),
        "near duplicates": int(near.sum()),
        "pairs": _pairs(source, compared.indices, equal, exact) + _pairs(source, compared.indices, similar, near),
    }
    part.notes += [f"Unusable: {example}." for example in look["examples"]]
    if look["count"] < LEAST_IMAGES:
        part.say(
            "bad",
            f"{look['count']} images are too few to learn from",
            f"find at least {LEAST_IMAGES}, better thousands",
        )
    elif look["count"] < FEW_IMAGES:
        part.say("doubtful", f"{look['count']:,} images are few and will rather be learnt by heart", "add images")
    else:
        part.say("good", f"there are {look['count']:,} images")
    if look["broken"]:
        many = look["broken"] > 0.1 * (look["count"] + look["broken"])
        told = f"{look['broken']:,} file{'s' * (look['broken'] != 1)} cannot be used"
        part.say("bad" if many else "doubtful", told, "mend or remove the unusable files")
    if look["short_side"][1] < SMALL:
        part.say("bad", f"half of the images are smaller than {SMALL} px", "use larger images")
    for what, todo in source.remarks:
        part.say("bad" if todo == BRIGHTEN else "doubtful", what, todo)
    if look["square"] < 0.9:
        part.say("doubtful", f"only {look['square']:.0%} are nearly square, and the others lose their margins")
    repeated = look["repeated"] / look["compared"]
    if repeated > REPEATED_SHARE:
        found = (
            f"{int(exact.sum()):,} exact and {int(near.sum()):,} near duplicates among {look['compared']:,} compared"
        )
        if source.labels is not None:
            classes = source.labels[compared.indices]
            apart = int((exact & (classes != classes[equal])).sum())
            found += f" ({apart:,} of the exact ones in different classes)" * (apart > 0)
        part.say("bad" if repeated > 0.2 else "doubtful", found, "remove the duplicates, or scores will flatter")
    else:
        part.say("good", f"few images repeat ({look['repeated']} of {look['compared']:,})")
    if source.labels is not None:
        numbers = np.bincount(source.labels, minlength=len(source.class_names))
        part.figures["largest class"] = int(numbers.max())
        if numbers.max() > UNEVEN * max(numbers.min(), 1):
            part.say(
                "doubtful", f"the classes are uneven, {numbers.min():,} to {numbers.max():,} images", "even them out"
            )
    return part


def _pairs(source: ImageSource, indices: np.ndarray, earlier: np.ndarray, chosen: np.ndarray) -> list[str]:
    """Some images and the earlier ones that they repeat, by name."""
    files = names_of(source)

    def name(place: int) -> str:
        index = int(indices[place])
        return files[index] if len(files) else f"number {index}"

    return [f"{name(int(i))} = {name(int(earlier[i]))}" for i in np.flatnonzero(chosen)[:NAMED]]
