"""The embedded photographs: whole, small, labelled, split as in their source, and the same for everybody."""

from __future__ import annotations

import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcg.data.embedded.pack import embedded_pack, read_pack
from rcg.data.embedded.sets import CLOTHING_SIZE, EMBEDDED
from rcg.data.images import ImageDataset
from rcg.data.shapes import draw
from rcg.data.sources import open_source

ROOT = Path(__file__).parents[2]
SPLITS = {"train": 3068, "validation": 341, "test": 372}
KINDS = ["dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt"]


def test_the_file_is_small_and_whole() -> None:
    file = ROOT / "rcg/data/embedded/clothing.npz"
    assert file.stat().st_size <= 3 * 2**20
    assert "CC0" in file.with_suffix(".md").read_text()
    pack = embedded_pack("clothing")
    assert pack.size == CLOTHING_SIZE
    assert {name: int((pack.splits == name).sum()) for name in SPLITS} == SPLITS
    assert len(pack.labels) == len(pack.offsets) - 1 == sum(SPLITS.values())
    assert pack.offsets[-1] == len(pack.data)
    for i in range(0, len(pack.labels), 40):
        assert pack.image(i).size == (CLOTHING_SIZE, CLOTHING_SIZE)


@pytest.mark.parametrize("split", SPLITS)
def test_splits_and_labels(split: str) -> None:
    source = open_source(f"clothing:split={split}")
    assert len(source) == SPLITS[split]
    assert source.class_names == KINDS == sorted(KINDS)
    assert source.labels is not None
    assert np.bincount(source.labels, minlength=10).min() > 0
    assert np.bincount(source.labels[:100], minlength=10).max() < 60  # not one class after the other


def test_splits_share_no_photograph() -> None:
    pack = embedded_pack("clothing")
    files = [pack.data[a:b].tobytes() for a, b in zip(pack.offsets, pack.offsets[1:], strict=False)]
    test = {f for f, split in zip(files, pack.splits, strict=True) if split == "test"}
    assert not test & {f for f, split in zip(files, pack.splits, strict=True) if split == "train"}
    assert len(open_source("clothing:split=all")) == len(files)


def test_options() -> None:
    whole, part = open_source("clothing:size=32"), open_source("clothing:n=50,size=32,seed=1")
    assert whole.image(3).size == (32, 32)
    assert whole.sizes.tolist()[0] == [32, 32]
    assert len(part) == 50
    again, other = open_source("clothing:seed=1,n=50,size=32"), open_source("clothing:n=50,size=32,seed=2")
    assert again.fingerprint == part.fingerprint
    assert np.array_equal(np.asarray(again.image(7)), np.asarray(part.image(7)))
    specs = ["clothing", "clothing:size=32", "clothing:split=test", "clothing:n=50,size=32"]
    assert len({part.fingerprint, other.fingerprint, *(open_source(s).fingerprint for s in specs)}) == 6
    small = np.asarray(whole.image(0), np.float32)
    large = np.asarray(open_source("clothing").image(0), np.float32).reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(small - large).mean() < 6
    assert np.asarray(pickle.loads(pickle.dumps(part)).image(0)).shape == (32, 32, 3)
    batch = ImageDataset(part, 16, "crop_flip").batch(np.arange(4), np.arange(4, dtype=np.uint64))
    assert batch["images"].shape == (4, 3, 16, 16)
    assert batch["labels"].tolist() == part.labels[:4].tolist()  # type: ignore[index]


def test_photographs_differ() -> None:
    source = open_source("clothing:n=60,size=16")
    pictures = np.stack([np.asarray(source.image(i), np.float32) for i in range(60)])
    distances = np.abs(pictures[:, None] - pictures[None]).mean((2, 3, 4)) + 999 * np.eye(60)
    assert distances.min() > 1
    assert (pictures.std((1, 2, 3)) > 5).all()


def test_examples_open() -> None:
    for name, one in EMBEDDED.items():
        assert len(open_source(one.example)) == 2000
        assert open_source(one.example).fingerprint != open_source(f"{name}:n=1").fingerprint


def test_the_set_is_read_only_when_it_is_asked_for() -> None:
    embedded_pack.cache_clear()
    open_source("shapes:n=1")
    assert embedded_pack.cache_info().misses == 0
    open_source("clothing")
    open_source("clothing:n=3").image(0)
    assert embedded_pack.cache_info().misses == 1


def test_making_a_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(12):
        folder = tmp_path / "photos" / ("test" if i % 3 == 0 else "train") / ("b" if i % 2 else "a")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(0, i, 40)[4:]).save(folder / f"{i:02d}.png")
    script = runpy.run_path(str(ROOT / "benchmarks/pack_photographs.py"))
    script["main"](script["Config"](tmp_path / "photos", tmp_path / "new.npz", size=24, quality=90))
    assert "12 photographs (4 test, 8 train) of 2 classes" in capsys.readouterr().out
    with (tmp_path / "new.npz").open("rb") as file:
        pack = read_pack(file)
    assert pack.classes == ("a", "b")
    assert (pack.splits == "test").sum() == 4
    assert pack.image(5).size == (24, 24)
    squares = [np.asarray(Image.fromarray(draw(0, i, 40)[4:, 2:38]).resize((24, 24), 3), np.float32) for i in range(12)]
    packed = [np.asarray(pack.image(i), np.float32) for i in range(12)]
    nearest = [int(np.argmin([np.abs(p - s).mean() for s in squares])) for p in packed]
    assert sorted(nearest) == list(range(12))
    assert [n % 2 for n in nearest] == pack.labels.tolist()
    assert [n % 3 == 0 for n in nearest] == (pack.splits == "test").tolist()
