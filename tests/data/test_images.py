"""Batches of images: framing, randomness from seeds alone, memory."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core.errors import UserError
from rcg.data.images import Framing, ImageDataset, to_unit
from rcg.data.shapes import draw
from rcg.data.sources import ImageSource, open_source


class Pictures(ImageSource):
    """Random pictures of given sizes; counts how often each is decoded."""

    def __init__(self, sizes: list[tuple[int, int]], labelled: bool = True) -> None:
        rng = np.random.default_rng(0)
        self.arrays = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for w, h in sizes]
        self.sizes = np.array(sizes, np.int32)
        self.labels = np.arange(len(sizes)) % 2 if labelled else None
        self.class_names = ["a", "b"] if labelled else []
        self.name, self.fingerprint, self.skipped = "pictures", "0123", []
        self.decoded = [0] * len(sizes)

    def image(self, index: int) -> Image.Image:
        self.decoded[index] += 1
        return Image.fromarray(self.arrays[index])


SIZES = [(20, 20), (31, 20), (20, 33), (64, 40), (9, 12), (40, 200)]
MODES = [("none", 1.0), ("crop_flip", 1.0), ("crop_flip", 0.4)]


def seeds(*values: int) -> np.ndarray:
    return np.array(values, np.uint64) + np.uint64(2**63 + 5)


def test_plain_framing_is_resize_and_centre_crop() -> None:
    source = Pictures(SIZES)
    images = ImageDataset(source, 20).batch(np.arange(6), seeds(*range(6)))["images"]
    assert images.dtype == torch.uint8
    assert images.shape == (6, 3, 20, 20)
    assert np.array_equal(images[0].permute(1, 2, 0), source.arrays[0])
    assert np.array_equal(images[1].permute(1, 2, 0), source.arrays[1][:, 6:26])  # torchvision rounds 5.5 to even
    small = Image.fromarray(source.arrays[3]).resize((32, 20), Image.Resampling.BICUBIC)
    assert np.array_equal(images[3].permute(1, 2, 0), np.asarray(small)[:, 6:26])


def test_crops_and_flips_are_parts_of_the_picture() -> None:
    source = Pictures([(26, 20)])
    batch = ImageDataset(source, 20, "crop_flip").batch(np.zeros(200, int), seeds(*range(200)))
    wide = source.arrays[0]
    found = set()
    for image in batch["images"].permute(0, 2, 3, 1).numpy():
        matches = [
            (left, flip)
            for left in range(7)
            for flip in (False, True)
            if np.array_equal(image[:, ::-1] if flip else image, wide[:, left : left + 20])
        ]
        assert len(matches) == 1
        found.add(matches[0])
    assert len(found) == 14  # every place, mirrored and not


def test_crop_scale_zooms() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 100).astype(np.uint8)[None, :, None], (100, 100, 3))
    source = Pictures([(100, 100)])
    source.arrays = [np.ascontiguousarray(ramp)]
    images = ImageDataset(source, 16, "crop_flip", 0.25).batch(np.zeros(300, int), seeds(*range(300)))["images"]
    spans = (images.float().amax((1, 2, 3)) - images.float().amin((1, 2, 3))) / 255
    # a share a of the area and an aspect r in [3/4, 4/3] cover √(a·r) of the width
    assert spans.min() < 0.55
    assert spans.min() > 0.25**0.5 * 0.75**0.5 - 0.1
    assert spans.max() > 0.9
    panorama = Pictures([(400, 10)])
    assert ImageDataset(panorama, 8, "crop_flip", 0.9).batch(np.array([0]), seeds(1))["images"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(("augment", "scale"), MODES)
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_a_sample_follows_from_its_index_and_seed(augment: str, scale: float, memory: int) -> None:
    rng = np.random.default_rng(1)
    indices, chosen = rng.integers(6, size=24), rng.integers(2**63, size=24).astype(np.uint64) * np.uint64(2)
    reference = ImageDataset(Pictures(SIZES), 16, augment, scale).batch(indices, chosen)["images"]  # type: ignore[arg-type]
    dataset = ImageDataset(Pictures(SIZES), 16, augment, scale, memory)  # type: ignore[arg-type]
    for order in (np.arange(24), np.arange(24)[::-1], rng.permutation(24)[:7]):
        assert torch.equal(dataset.batch(indices[order], chosen[order])["images"], reference[order.copy()])
    one = dataset.batch(indices[5:6], chosen[5:6])["images"]
    assert torch.equal(one[0], reference[5])
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy.batch(indices, chosen)["images"], reference)


def test_seeds_matter_and_batches_are_described() -> None:
    dataset = ImageDataset(Pictures(SIZES), 16, "crop_flip")
    batch = dataset.batch(np.array([3, 3, 4]), seeds(1, 2, 3))
    assert not torch.equal(batch["images"][0], batch["images"][1])
    assert batch["indices"].tolist() == [3, 3, 4]
    assert batch["labels"].tolist() == [1, 1, 0]
    assert batch["indices"].dtype == batch["labels"].dtype == torch.int64
    assert dataset.num_classes == 2
    assert "labels" not in ImageDataset(Pictures(SIZES, False), 16).batch(np.array([0]), seeds(0))


@pytest.mark.parametrize(("augment", "scale"), MODES)
def test_small_sets_are_decoded_once(augment: str, scale: float) -> None:
    source = Pictures(SIZES)
    need = sum(h * w * 3 for h, w in Framing(16, augment, scale).base_shapes(np.array(SIZES)).tolist())  # type: ignore[arg-type]
    for memory, times in ((need, 1), (need - 1, 3)):
        source.decoded = [0] * 6
        dataset = ImageDataset(source, 16, augment, scale, memory)  # type: ignore[arg-type]
        for _ in range(3):
            dataset.batch(np.arange(6), seeds(*range(6)))
        assert source.decoded == [times] * 6


def test_base_shapes_are_as_foretold() -> None:
    for mode in MODES:
        framing = Framing(16, *mode)  # type: ignore[arg-type]
        for width, height in [*SIZES, (17, 16), (333, 500), (16, 1), (1, 16), (1000, 667)]:
            image = Image.new("RGB", (width, height))
            assert framing.base(image).shape == (*framing.base_shapes(np.array([[width, height]]))[0].tolist(), 3), (
                mode,
                width,
                height,
            )


def test_fingerprints_tell_framings_apart() -> None:
    source = Pictures(SIZES)
    sets = [ImageDataset(source, 16), ImageDataset(source, 17), *(ImageDataset(source, 16, *m) for m in MODES[1:])]  # type: ignore[arg-type]
    assert len({s.fingerprint for s in sets}) == 4


def test_from_a_folder(tmp_path: Path) -> None:
    for i in range(4):
        Image.fromarray(draw(0, i, 24)).save(tmp_path / f"{i}.png")
    images = ImageDataset(open_source(tmp_path, progress=False), 24).batch(np.array([2]), seeds(0))["images"]
    assert np.array_equal(images[0].permute(1, 2, 0), draw(0, 2, 24))


def test_unit_range() -> None:
    unit = to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert unit.dtype == torch.float32
    assert torch.equal(unit, torch.tensor([0, 0.2, 1]))


def test_bad_arguments() -> None:
    source = Pictures(SIZES)
    with pytest.raises(UserError, match="image size is 0"):
        ImageDataset(source, 0)
    with pytest.raises(UserError, match="crop scale is 2"):
        ImageDataset(source, 8, "crop_flip", 2)
    with pytest.raises(UserError, match="no augmentation 'flip'"):
        ImageDataset(source, 8, "flip")  # type: ignore[arg-type]
