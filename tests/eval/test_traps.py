"""The known ways to measure wrongly are noticed, and good sets are let be."""

from __future__ import annotations

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.eval.references import ImageStats, Origin
from rcg.eval.traps import check_resize, check_sizes, class_notes, count_notes, format_notes, precision_notes

SMOOTH, PLAIN = (f"bicubic, {how} antialias, centre crop" for how in ("with", "without"))


def test_other_sizes_are_refused() -> None:
    check_sizes("32×32", "32×32")
    check_sizes(None, "32×32")
    check_sizes("32×32", None)
    with pytest.raises(UserError, match=r"generated images are 32×32 px and the reference 64×64 px.*--image-size"):
        check_sizes("32×32", "64×64")


def test_other_resizes_are_refused() -> None:
    for one, other in ((SMOOTH, SMOOTH), ("none", SMOOTH), (None, SMOOTH), (PLAIN, "none")):
        check_resize(Origin(resize=one), Origin(resize=other))
    with pytest.raises(UserError, match=r"in another way than the reference.*--resize"):
        check_resize(Origin(resize=PLAIN), Origin(resize=SMOOTH))


def test_lossy_files() -> None:
    assert format_notes(Origin(formats={"png": 9}), Origin(formats={"png": 5, "bmp": 1})) == []
    (note,) = format_notes(Origin(formats={"png": 9}), Origin(formats={"jpg": 5, "jpeg": 2, "png": 1}))
    assert note.startswith("7 of the reference's files are JPEG")
    (note,) = format_notes(Origin(formats={"jpg": 9}), Origin())
    assert note.startswith("9 of the generated files")
    (note,) = format_notes(Origin(formats={"jpeg2000": 4, "mpo": 3, "png": 1}), Origin())  # as Pillow calls them
    assert note.startswith("7 of the generated files")


def said(classes: dict[str, int] | None, others: dict[str, int] | None = None) -> str:
    return " ".join(class_notes(classes, "reference", others))


def test_classes() -> None:
    ten = {f"c{i}": 100 for i in range(10)}
    assert said(None) == said({"all": 7}) == ""
    assert said(ten, ten) == "The reference images have 10 classes, filled evenly."
    assert "unevenly, 5 to 100 each" in said({"a": 100, "b": 5, "c": 50})
    assert "unevenly" in said(ten | {"c3": 40})  # small, but in the middle
    cut = {"c0": 100, "c1": 98, "c2": 100, "c3": 31}
    assert "look like the beginning of a sorted set: c3" in said(cut)
    assert "lack 6 that the other side has (c4, c5, c6 …)" in said(cut, ten)
    assert "8 of the 10 classes of the reference images are empty" in said(
        {f"c{i}": 100 if i < 2 else 0 for i in range(10)}
    )
    assert "lack 8" in said({"c0": 100, "c1": 100}, ten)
    assert "lack" not in said(ten, {"c0": 4})
    numbered = {str(i): 100 for i in range(10)}
    assert "lack" not in said(numbered, ten) + said(ten, numbered)  # an .npz of ADM beside a folder
    assert "lack 1 " in said(numbered, numbered | {"10": 100})


def test_random_draws_are_no_cut_sets() -> None:
    """What --limit leaves of an even set does not look like its beginning."""
    for seed in range(50):
        drawn = np.random.default_rng(seed).multinomial(500, [0.1] * 10)
        assert "beginning" not in said({str(i): int(n) for i, n in enumerate(drawn)})


def test_counts_and_precision() -> None:
    few, enough, unknown = (ImageStats(np.zeros(4), np.eye(4), n) for n in (4, 5, None))
    (note,) = count_notes(few, enough, "fid-x")
    assert "generated images (4) than features (4): fid-x" in note
    assert "--fid-infinity" in note
    assert "extrapolate" not in count_notes(few, enough, "fid-x", extrapolated=True)[0]
    (note,) = count_notes(enough, few, "fid")
    assert "reference images (4)" in note
    assert count_notes(enough, unknown, "fid") == []
    assert precision_notes(Origin(precision="bf16"), Origin(precision="bf16")) == []
    assert precision_notes(Origin(precision="bf16"), Origin()) == []
    assert "bf16 and the reference in fp32" in precision_notes(Origin(precision="bf16"), Origin(precision="fp32"))[0]
