"""Looking at the images before anything is planned: how many, how large, of which classes, and whether they repeat."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import NamedTuple, TypedDict

import numpy as np
from PIL import Image

from rcg.core.errors import UserError
from rcg.core.rng import derive_seed
from rcg.core.schema import Count, CountOrZero, NonNegative, Share
from rcg.data.images import DecodePool
from rcg.data.sources import ImageSource

LEAST_IMAGES = 100
"""Fewer say nothing about what images are like, and leave nothing to judge by."""
FEW_IMAGES = 2000
"""Fewer will rather be learnt by heart."""
HASHED = 5000
"""Images at most that are compared with each other."""
NEAR = 5
"""Two images are near-duplicates if at most so many of the 128 bits of their difference hashes differ."""
AT_ONCE = 64


class Look(TypedDict):
    """What was seen.

    Attributes:
        name, fingerprint: of the source.
        count: usable images.
        broken: files that cannot be used.
        examples: some of them, with the reason.
        short_side: 10 %, 50 % and 90 % quantile of the shorter sides, in pixels.
        square: share of images whose longer side is at most 1.1 times the shorter.
        classes: number of classes, 0 without labels.
        smallest_class: images of the rarest class.
        compared: images that were looked at for repetitions.
        repeated: of these, how many are nearly equal to an earlier one.
        decode: seconds to open an image, all cores working.
    """

    name: str
    fingerprint: str
    count: Count
    broken: CountOrZero
    examples: list[str]
    short_side: tuple[Count, Count, Count]
    square: Share
    classes: CountOrZero
    smallest_class: CountOrZero
    compared: CountOrZero
    repeated: CountOrZero
    decode: NonNegative


def difference_hash(image: Image.Image) -> np.ndarray:
    """128 bits (bool): whether a 9 × 8 and an 8 × 9 grey thumbnail grow brighter to the right and downwards.

    Resizing, recompression and small changes of colour leave nearly all of them as they are.
    """
    grey = image.convert("L")
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16)
    return np.concatenate([(np.diff(across, axis=1) > 0).ravel(), (np.diff(down, axis=0) > 0).ravel()])


def find_repeated(hashes: np.ndarray) -> np.ndarray:
    """For each row of bool [N, B] the first earlier one from which it differs in at most NEAR bits, else -1: int64 [N]."""
    signs = hashes.astype(np.float32) * 2 - 1
    found, bits = np.full(len(signs), -1, np.int64), signs.shape[1]
    for start in range(0, len(signs), 1024):
        rows = signs[start : start + 1024]
        differing = (bits - rows @ signs[: start + len(rows)].T) / 2
        earlier = np.arange(start + len(rows))[None] < (start + np.arange(len(rows)))[:, None]
        close = (differing <= NEAR) & earlier
        found[start : start + len(rows)] = np.where(close.any(axis=1), close.argmax(axis=1), -1)
    return found


class Compared(NamedTuple):
    """Images that were opened to be compared with each other.

    Attributes:
        indices: int64 [n], their numbers in the source.
        hashes: bool [n, 128], see `difference_hash`.
        digests: of the pixels and the size; equal for equal pictures.
        decode: seconds to open and compare an image, all cores working.
    """

    indices: np.ndarray
    hashes: np.ndarray
    digests: list[bytes]
    decode: float


def compare(source: ImageSource, seconds: float, clock: Callable[[], float] = time.monotonic) -> Compared:
    """Open images of a source in a random order (always the same), until `seconds` are over; at least 64, at most 5,000."""
    order = np.random.default_rng(derive_seed(len(source), 7)).permutation(len(source))[:HASHED]
    pool, found = DecodePool(), list[tuple[np.ndarray, bytes]]()

    def fingerprints(index: int) -> tuple[np.ndarray, bytes]:
        image = source.image(index)
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        return difference_hash(image), digest

    begun = clock()
    for start in range(0, len(order), AT_ONCE):
        found += pool.map(fingerprints, [int(i) for i in order[start : start + AT_ONCE]])
        if clock() - begun > seconds:
            break
    decode = (clock() - begun) / len(found)
    hashes, digests = zip(*found, strict=True)
    return Compared(order[: len(found)], np.stack(hashes), list(digests), decode)


def look_at(source: ImageSource, *, seconds: float = 15.0, clock: Callable[[], float] = time.monotonic) -> Look:
    """Look at a source.

    Args:
        source: the images.
        seconds: of opening images to compare them; at least 64 are looked at, at most 5,000.
        clock: tells the time in seconds.

    Raises:
        UserError: fewer than 100 images.
    """
    count = len(source)
    if count < LEAST_IMAGES:
        raise UserError(
            f"{source.name} has {count} usable image{'s' * (count != 1)}, too few to learn from; give at least "
            f"{LEAST_IMAGES} (some thousand are better)."
        )
    return describe(source, compare(source, seconds, clock))


def describe(source: ImageSource, compared: Compared) -> Look:
    """What is seen of a source of which some images have been compared."""
    short = source.sizes.min(axis=1)
    low, median, high = (int(q) for q in np.quantile(short, [0.1, 0.5, 0.9]))
    classes = [] if source.labels is None else np.bincount(source.labels, minlength=len(source.class_names)).tolist()
    return {
        "name": source.name,
        "fingerprint": source.fingerprint,
        "count": len(source),
        "broken": len(source.skipped),
        "examples": [f"{path}: {reason}" for path, reason in source.skipped[:5]],
        "short_side": (low, median, high),
        "square": float((source.sizes.max(axis=1) <= 1.1 * short).mean()),
        "classes": len(source.class_names),
        "smallest_class": min(classes, default=0),
        "compared": len(compared.hashes),
        "repeated": int((find_repeated(compared.hashes) >= 0).sum()),
        "decode": compared.decode,
    }


def in_sentences(look: Look) -> list[str]:
    """What a person should know of their images, what speaks against them included."""
    low, median, high = look["short_side"]
    sides = f"{median} px" if low == high else f"{low} to {high} px (half of them at least {median})"
    classes = f", {look['classes']} classes" if look["classes"] else ", no classes (none are needed)"
    told = [f"{look['count']:,} images in {look['name']}, their shorter side {sides}{classes}."]
    if look["square"] < 0.9:
        told.append(f"Only {look['square']:.0%} are nearly square; of the others random squares are taken.")
    if look["broken"]:
        told.append(
            f"{look['broken']:,} file{'s' * (look['broken'] != 1)} cannot be used, for instance {look['examples'][0]}."
        )
    if look["repeated"] > 0.01 * look["compared"]:
        told.append(
            f"{look['repeated']:,} of {look['compared']:,} images that were compared are nearly equal to another one; "
            "without the repetitions, models learn less by heart and scores are more honest."
        )
    if look["count"] < FEW_IMAGES:
        told.append("These are few: the generator will rather repeat them than invent, more images would help most.")
    return told
