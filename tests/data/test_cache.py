"""The cache: the same bytes however it is built, whole or not at all, and refused where it does not fit."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tqdm import tqdm

from rcg.data import build as build_module
from rcg.data.build import views_of
from rcg.data.cache import Cache, CacheField, build_cache, is_cache
from rcg.data.images import Framing
from rcg.data.layout import HEADER, save_array
from rcg.data.sources import ImageSource, open_source
from rcg.errors import UserError
from rcg.files import model_hash
from rcg.rng import sample_seeds


class Encoder(nn.Module):
    """Means over the picture and over its left half, weighted; can be slow."""

    def __init__(self, scale: float = 1.0, pause: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.pause = pause

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pause)
        assert images.dtype == torch.float32
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
        return torch.cat([images.mean((2, 3)), images[..., : images.shape[3] // 2].mean((2, 3))], 1) * self.scale


class Tokenizer(nn.Module):
    """Grey levels of 2×2 blocks."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return (nn.functional.avg_pool2d(images.mean(1), 2) * 1000).long()


def representations(**options: Any) -> dict[str, CacheField]:
    model = Encoder(**options)
    return {"representations": CacheField(model, model)}


def tokens() -> dict[str, CacheField]:
    model = Tokenizer()
    return {"tokens": CacheField(model, model.encode, "uint16")}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def source() -> ImageSource:
    return open_source("shapes:n=23,size=12,seed=4")


def make(source: ImageSource, folder: Path, fields: dict[str, CacheField] | None = None, **options: Any) -> None:
    defaults: dict[str, Any] = {"size": 8, "views": 4, "shard_size": 5, "batch_size": 6, "progress": False}
    build_cache(source, folder, fields or representations() | tokens(), **{**defaults, **options})


@pytest.fixture
def built(source: ImageSource, tmp_path: Path) -> Path:
    make(source, tmp_path / "cache", crop_scale=0.5)
    return tmp_path / "cache"


def test_what_is_in_it(source: ImageSource, built: Path) -> None:
    assert is_cache(built)
    assert not is_cache(built.parent)
    cache = Cache(built)
    assert cache.fields == {"representations": (6,), "tokens": (4, 4)}
    assert (len(cache), cache.views, cache.num_classes) == (23, 4, 10)
    assert cache.class_names == source.class_names
    assert np.array_equal(cache.labels, source.labels)  # type: ignore[arg-type]
    assert sorted(p.name for p in (built / "shard-00004").iterdir()) == [
        "indices.npy",
        "labels.npy",
        "representations.npy",
        "tokens.npy",
    ]
    assert np.load(built / "shard-00004" / "indices.npy").tolist() == [20, 21, 22]
    stored = np.load(built / "shard-00001" / "tokens.npy", mmap_mode="r")
    assert stored.shape == (5, 4, 4, 4)
    assert stored.dtype == np.uint16
    manifest = cache.manifest
    assert manifest["source"]["fingerprint"] == source.fingerprint
    assert manifest["transform"] == {"size": 8, "augment": "crop_flip", "crop_scale": 0.5, "views": 4, "seed": 0}
    assert manifest["fields"]["representations"]["model_hash"] == model_hash(Encoder())


def test_rows_are_what_the_models_say_of_the_views(source: ImageSource, built: Path) -> None:
    cache = Cache(built)
    framing = Framing(8, "crop_flip", 0.5)
    for index in (0, 4, 5, 22):
        views = list(views_of(framing.base(source.image(index)), framing, 0, index, 4))
        images = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255
        expected, codes = Encoder()(images), Tokenizer().encode(images)
        for view in range(4):
            assert np.allclose(cache.all("representations", view)[index], expected[view].detach(), atol=1e-6)
            assert np.array_equal(cache.all("tokens", view)[index], codes[view])
        assert np.array_equal(views[1], views[0][:, ::-1])  # the same crop, mirrored
        assert np.array_equal(views[3], views[2][:, ::-1])
        assert not np.array_equal(views[2], views[0])
    assert cache.all("tokens", 1, limit=7).shape == (7, 4, 4)
    assert cache.all("tokens").dtype == np.int64
    assert cache.all("representations").dtype == np.float32


def test_batches(built: Path) -> None:
    cache = Cache(built)
    indices = np.random.default_rng(0).integers(23, size=400)
    seeds = sample_seeds(0, np.arange(400), indices)
    batch = cache.batch(indices, seeds)
    assert batch["representations"].dtype == torch.float32
    assert batch["tokens"].dtype == torch.int64
    assert np.array_equal(batch["indices"], indices)
    assert np.array_equal(batch["labels"], indices % 10)
    every = {name: np.stack([cache.all(name, v) for v in range(4)]) for name in cache.fields}
    seen = set()
    for j, index in enumerate(indices):
        same = [
            v
            for v in range(4)
            if np.array_equal(every["representations"][v, index], batch["representations"][j])
            and np.array_equal(every["tokens"][v, index], batch["tokens"][j])
        ]
        assert same  # one view, in both fields
        seen.add(same[0])
    assert seen == {0, 1, 2, 3}
    assert torch.equal(cache.batch(indices[7:8], seeds[7:8])["representations"][0], batch["representations"][7])
    only = Cache(built, ["tokens"])
    assert set(only.batch(indices, seeds)) == {"tokens", "indices", "labels"}


def test_a_single_view_is_the_centre(source: ImageSource, tmp_path: Path) -> None:
    make(source, tmp_path / "one", views=1, seed=9)
    expected = Framing(8).base(source.image(3)).mean((0, 1)) / 255
    cache = Cache(tmp_path / "one")
    assert np.allclose(cache.all("representations")[3, :3], expected, atol=1e-6)
    assert cache.manifest["transform"]["augment"] == "none"


def test_any_number_of_processes_writes_the_same(source: ImageSource, built: Path, tmp_path: Path) -> None:
    for rank in (2, 0, 1):
        make(source, tmp_path / "three", crop_scale=0.5, rank=rank, world=3)
    assert contents(tmp_path / "three") == contents(built)


def test_ranks_come_from_the_environment(
    source: ImageSource, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    make(source, tmp_path / "two", crop_scale=0.5)
    assert sorted(p.name for p in (tmp_path / "two").glob("shard*")) == ["shard-00001", "shard-00003"]
    monkeypatch.setenv("RANK", "0")
    make(source, tmp_path / "two", crop_scale=0.5)
    assert contents(tmp_path / "two") == contents(built)


def test_processes_at_the_same_time(source: ImageSource, built: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    together = [
        context.Process(target=make, args=(source, tmp_path / "par"), kwargs={"crop_scale": 0.5, "rank": r, "world": 3})
        for r in range(3)
    ]
    for process in together:
        process.start()
    for process in together:
        process.join(60)
        assert process.exitcode == 0
    assert contents(tmp_path / "par") == contents(built)


def _make_in_child(*args: Any, **options: Any) -> None:
    tqdm.set_lock(threading.RLock())  # tqdm's own is shared with forked children: one that dies holding it locks us out
    make(*args, **options)


def test_killed_and_continued(source: ImageSource, built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    chance = random.Random()  # a random moment each time; whatever it is, the result must be the same
    kept: dict[str, int] = {}
    unfinished = 0
    for _ in range(8):
        slow = representations(pause=0.01) | tokens()
        process = multiprocessing.get_context("fork").Process(
            target=_make_in_child, args=(source, folder, slow), kwargs={"crop_scale": 0.5}
        )
        process.start()
        time.sleep(chance.uniform(0.02, 0.2))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        unfinished += process.exitcode == -signal.SIGKILL
        shards = {p.name: p.stat().st_mtime_ns for p in folder.glob("shard-*")}
        assert {name: shards[name] for name in kept} == kept  # complete shards are left alone
        kept = shards
        for shard in kept:
            assert len(list((folder / shard).iterdir())) == 4
    assert unfinished
    (folder / ".shard-00002.abcdef12").mkdir(exist_ok=True, parents=True)  # as a killed process leaves behind
    (folder / ".shard-00002.abcdef12" / "tokens.npy").write_bytes(b"half")
    (folder / ".manifest.json.abcdef12.json").write_text("{")
    for leftover in folder.glob(".manifest*"):
        os.utime(leftover, (1, 1))
    make(source, folder, crop_scale=0.5)
    assert contents(folder) == contents(built)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.npy")}
    make(source, folder, crop_scale=0.5)  # nothing is left to do
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.npy")} == before


def test_a_full_disk_leaves_nothing_half_written(
    source: ImageSource, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_at(nth: int) -> None:
        calls: Iterator[int] = iter(range(1000))

        def save(path: Path, array: np.ndarray) -> None:
            if next(calls) == nth:
                path.write_bytes(b"\x93NUMPY")
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            save_array(path, array)

        monkeypatch.setattr(build_module, "save_array", save)

    folder = tmp_path / "full"
    whole = contents(built)
    for nth in (0, 1, 6, 7, 3):
        fails_at(nth)
        with pytest.raises(OSError, match="No space"):
            make(source, folder, crop_scale=0.5)
        there = contents(folder)
        assert there.items() <= whole.items()
        assert not [p for p in folder.iterdir() if p.name.startswith(".")]
        with pytest.raises(UserError, match="incomplete"):
            Cache(folder)
    monkeypatch.undo()
    make(source, folder, crop_scale=0.5)
    assert contents(folder) == whole


def test_a_field_is_added_later(
    source: ImageSource, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "later"
    make(source, folder, representations(), crop_scale=0.5)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.npy")}
    first = Cache(folder)
    with pytest.raises(UserError, match=r"holds no tokens .* add them with rcg-cache"):
        first.require("tokens")
    ran = []
    monkeypatch.setattr(Encoder, "forward", lambda *_: ran.append(1))
    make(source, folder, tokens(), crop_scale=0.5)
    assert not ran
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert contents(folder) == contents(built)
    assert Cache(folder, ["representations"]).fingerprint == first.fingerprint
    assert Cache(folder).fingerprint == Cache(built).fingerprint != first.fingerprint


def test_an_unfinished_addition_spares_the_other_field(source: ImageSource, built: Path) -> None:
    (built / "shard-00003" / "tokens.npy").unlink()
    assert len(Cache(built, ["representations"])) == 23
    with pytest.raises(UserError, match="1 of 5 shards lack"):
        Cache(built)


def test_require(built: Path) -> None:
    cache = Cache(built)
    cache.require("representations", Encoder())
    cache.require("tokens")
    with pytest.raises(UserError, match="computed by another Encoder"):
        cache.require("representations", Encoder(scale=1.0001))
    with pytest.raises(UserError, match="holds no depth"):
        cache.require("depth")
    with pytest.raises(UserError, match="holds no depth"):
        Cache(built, ["depth"])
    with pytest.raises(UserError, match="views 0 to 3"):
        cache.all("tokens", 4)


def test_damage_is_noticed_and_mended(source: ImageSource, built: Path) -> None:
    whole = contents(built)
    file = built / "shard-00002" / "tokens.npy"
    late = Cache(built)
    for size in (HEADER + 3, 0):
        os.truncate(file, size)
        with pytest.raises(UserError, match=r"tokens\.npy of the cache is damaged .* run the command") as caught:
            Cache(built)
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="ends early"):  # damaged after it was opened
            late.batch(np.array([14]), np.array([3], np.uint64))
        make(source, built, crop_scale=0.5)
        assert contents(built) == whole
    (built / "shard-00001").rename(built / "elsewhere")
    shutil.copytree(built / "shard-00000", built / "shard-00001")
    with pytest.raises(UserError, match="not part of this cache"):
        Cache(built)
    (built / "manifest.json").write_text(json.dumps(late.manifest | {"version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        Cache(built)
    (built / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is not a cache"):
        Cache(built)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 10}, "size 8, not 10"),
        ({"views": 2}, "views 4, not 2"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"crop_scale": 1.0}, "crop scale 0.5, not 1.0"),
        ({"shard_size": 6}, "5 images in a shard, not 6"),
        ({"precision": "bf16"}, "computed in fp32, not bf16"),
        ({"fields": representations(scale=2.0)}, "computed by another Encoder"),
        ({"source": open_source("shapes:n=24,size=12,seed=4")}, "of other images"),
        ({"fields": {"tokens": CacheField(Tokenizer(), Tokenizer().encode, "int32")}}, "stored as uint16, not int32"),
    ],
)
def test_another_cache_is_not_touched(source: ImageSource, built: Path, change: dict[str, Any], message: str) -> None:
    before = contents(built)
    with pytest.raises(UserError, match=message) as caught:
        make(**{"source": source, "folder": built, "crop_scale": 0.5, **change})
    assert "choose another folder" in str(caught.value)
    assert contents(built) == before


def test_other_refusals(source: ImageSource, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    for options, message in [
        ({"views": 0}, "views is 0"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"rank": 2, "world": 2}, "process 2 of 2"),
        ({"shard_size": 0}, "shard size is 0"),
        ({"crop_scale": 0.0}, "crop scale is 0"),
    ]:
        with pytest.raises(UserError, match=message):
            make(source, folder, **options)
    with pytest.raises(UserError, match="nothing to compute"):
        build_cache(source, folder, {}, 8)
    assert not folder.exists()
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a cache; choose another"):
        make(source, folder)
    assert contents(folder) == {"thesis.txt": b"mine"}


def test_numbers_that_cannot_be_stored(source: ImageSource, tmp_path: Path) -> None:
    def field(value: float, dtype: str) -> dict[str, CacheField]:
        return {"x": CacheField(Encoder(), lambda images: torch.full((len(images), 2), value), dtype)}

    for value, message in ((float("nan"), "not finite"), (1e5, "too large for float16")):
        with pytest.raises(UserError, match=message):
            make(source, tmp_path / message, field(value, "float16"))
        assert not list((tmp_path / message).glob("*shard*"))
    whole = {"x": CacheField(Encoder(), lambda images: torch.full((len(images), 2), 70000), "uint16")}
    with pytest.raises(UserError, match="too large for uint16"):
        make(source, tmp_path / "wide", whole)
    with pytest.raises(UserError, match="cannot be stored as uint16"):
        make(source, tmp_path / "kind", field(0.5, "uint16"))
    make(source, tmp_path / "half", field(0.5, "float16"))
    assert Cache(tmp_path / "half").batch(np.arange(3), np.arange(3).astype(np.uint64))["x"].dtype == torch.float32


def test_bf16_runs_under_autocast(source: ImageSource, tmp_path: Path) -> None:
    linear = nn.Linear(192, 4)
    fields = {"x": CacheField(linear, lambda images: linear(images.flatten(1)))}
    make(source, tmp_path / "full", fields)
    make(source, tmp_path / "low", fields, precision="bf16")
    full, low = Cache(tmp_path / "full").all("x"), Cache(tmp_path / "low").all("x")
    assert 1e-5 < np.abs(full - low).max() < 0.05


def test_errors_of_models_and_images_come_through(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(index: int) -> Any:
        if index == 12:
            raise UserError("the image is gone.")
        return open_source("shapes:n=23,size=12,seed=4").image(index)

    monkeypatch.setattr(source, "image", broken)
    with pytest.raises(UserError, match="the image is gone"):
        make(source, tmp_path / "a")
    assert len(list((tmp_path / "a").glob("shard-*"))) == 2

    def fails(images: torch.Tensor) -> torch.Tensor:
        if len(images) > 1:
            raise RuntimeError("model trouble")
        return images.flatten(1)

    with pytest.raises(RuntimeError, match="model trouble"):
        make(source, tmp_path / "b", {"x": CacheField(Encoder(), fails)})


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_is_flat(source: ImageSource, tmp_path: Path) -> None:
    """A cache of 2.1 GB in 400 shards (more than may be open at once); the files have holes, so it is quickly made."""
    folder, size, shards, dim = tmp_path / "big", 500, 400, 2560
    make(source, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["source"] |= {"count": size * shards, "labelled": False}
    manifest |= {"shard_size": size, "shards": shards}
    manifest["transform"]["views"] = 1
    manifest["fields"] = {"representations": manifest["fields"]["representations"] | {"shape": [dim]}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for shard in range(shards):
        place = folder / f"shard-{shard:05d}"
        place.mkdir(exist_ok=True)
        save_array(place / "indices.npy", np.arange(shard * size, (shard + 1) * size))
        save_array(place / "representations.npy", np.zeros((0,), np.float32))
        with (place / "representations.npy").open("rb+") as file:
            file.seek(HEADER + 77 * dim * 4)
            file.write(np.full(dim, shard, np.float32).tobytes())
        os.truncate(place / "representations.npy", HEADER + size * dim * 4)
    cache = Cache(folder)
    rng = np.random.default_rng(0)
    cache.batch(rng.integers(size * shards, size=512), np.zeros(512, np.uint64))
    before = resident()
    for _ in range(60):
        cache.batch(rng.integers(size * shards, size=512), np.zeros(512, np.uint64))
    rows = cache.batch(np.arange(shards) * size + 77, np.zeros(shards, np.uint64))["representations"]
    assert resident() - before < 32 << 20  # 300 MB were read
    assert np.array_equal(rows[:, 5], np.arange(shards))
