"""What is seen of images: sizes, classes, broken files, repetitions."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from rcg.core.errors import UserError
from rcg.data.sources import open_source
from rcg.recipe.look import LEAST_IMAGES, difference_hash, find_repeated, in_sentences, look_at
from tests.recipe.tiny import look


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Something with structure: coarse noise, enlarged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def test_changed_copies_keep_their_hash_and_others_do_not(tmp_path: Path) -> None:
    original = picture(0)
    original.save(tmp_path / "copy.jpg", quality=70)
    copies = [
        Image.open(tmp_path / "copy.jpg"),
        original.resize((96, 80)),
        ImageEnhance.Brightness(original).enhance(0.8),
    ]
    here = difference_hash(original)
    assert here.shape == (128,)
    assert max(int((difference_hash(copy) != here).sum()) for copy in copies) <= 5
    assert min(int((difference_hash(picture(seed)) != here).sum()) for seed in range(1, 30)) > 20


def test_repetitions_are_counted_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.random((1500, 128)) < 0.5
    for copy, original in ((10, 3), (1200, 3), (1499, 700)):
        hashes[copy] = hashes[original]
        hashes[copy, rng.permutation(128)[:5]] ^= True
    hashes[900] = hashes[1]
    hashes[900, :6] ^= True  # one bit too many
    naive = sum(any((hashes[i] != hashes[j]).sum() <= 5 for j in range(i)) for i in (3, 10, 700, 900, 1200, 1499))
    assert (find_repeated(hashes) >= 0).sum() == naive == 3


def test_a_folder_is_looked_at(tmp_path: Path) -> None:
    for i in range(120):
        folder = tmp_path / f"class{i % 3}"
        folder.mkdir(exist_ok=True)
        picture(i // 2 if i < 20 else i, (40 + i % 2, 80 if i < 30 else 40)).save(folder / f"{i:03d}.png")
    (tmp_path / "class0" / "broken.jpg").write_bytes(b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = look_at(open_source(tmp_path, progress=False))
    assert (seen["count"], seen["broken"], seen["classes"], seen["smallest_class"]) == (120, 1, 3, 40)
    assert seen["short_side"] == (40, 40, 41)
    assert seen["square"] == pytest.approx(0.75)
    assert (seen["compared"], seen["repeated"]) == (120, 10)
    assert "broken.jpg" in seen["examples"][0]
    text = " ".join(in_sentences(seen))
    for word in ("120 images", "3 classes", "75%", "1 file cannot be used", "10 of 120", "few"):
        assert word in text, word


def test_little_time_compares_few_images() -> None:
    ticks = iter(range(0, 10_000, 10))
    seen = look_at(open_source("shapes:n=400,size=16"), seconds=15, clock=lambda: float(next(ticks)))
    assert seen["compared"] == 128
    assert seen["decode"] == pytest.approx(30 / 128)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match=rf"12 usable images, too few.*{LEAST_IMAGES}"):
        look_at(open_source("shapes:n=12,size=16"))


def test_good_data_is_not_talked_down() -> None:
    (only,) = in_sentences(look())
    assert "50,000 images" in only
    assert "no classes (none are needed)" in only
