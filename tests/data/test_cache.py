"""The cache: what it holds, and the same bytes however it is built."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rcg.core.errors import UserError
from rcg.core.files import model_hash
from rcg.core.rng import sample_seeds
from rcg.data import blobs
from rcg.data.build import views_of
from rcg.data.cache import Cache, CacheField, is_cache
from rcg.data.images import Framing
from rcg.data.layout import HEADER, images_at_hand, save_array
from rcg.data.sources import ImageSource
from tests.data.caches import Encoder, Tokenizer, contents, make, representations, tokens


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


def test_how_far_it_is(built: Path, tmp_path: Path) -> None:
    assert images_at_hand(tmp_path) == 0
    assert images_at_hand(built) == 23
    shutil.copytree(built, tmp_path / "half")
    shutil.rmtree(tmp_path / "half/shard-00001")
    (tmp_path / "half/shard-00004/tokens.npy").unlink()
    assert images_at_hand(tmp_path / "half") == 23 - 5 - 3


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


def test_a_batch_of_none(built: Path) -> None:
    batch = Cache(built).batch(np.zeros(0, np.int64), np.zeros(0, np.uint64))
    assert batch["tokens"].shape == (0, 4, 4)
    assert batch["representations"].shape == (0, 6)


def test_all_threads_decode_however_many_views_there_are(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, together, real = list[int](), threading.Event(), source.image

    def image(index: int) -> Image.Image:
        at_work.append(index)
        if len(at_work) >= 5:  # the first is looked at alone, before
            together.set()
        assert len(at_work) == 1 or together.wait(20)
        return real(index)

    monkeypatch.setattr(source, "image", image)
    for module in ("images", "build"):
        monkeypatch.setattr(f"rcg.data.{module}.num_threads", lambda: 4)
    make(source, tmp_path / "cache", representations(), views=8, batch_size=8)


def test_threads_share_it_whatever_is_closed_meanwhile(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread stands between finding a shard's file and reading it, while others are opened and the oldest closed."""
    cache = Cache(built, ["representations"])
    expected, zero = cache.all("representations"), np.zeros(1, np.int64)
    monkeypatch.setattr(blobs, "_handle", lru_cache(maxsize=1)(blobs._handle.__wrapped__))
    pread, stands, goes_on = os.pread, threading.Event(), threading.Event()

    def slow(number: int, length: int, offset: int) -> bytes:
        if threading.current_thread() is not threading.main_thread():
            stands.set()
            goes_on.wait(20)
        return pread(number, length, offset)

    monkeypatch.setattr(os, "pread", slow)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(cache.read, "representations", np.array([2]), zero)
        assert stands.wait(20)
        for index in (7, 12, 17, 22):
            assert np.array_equal(cache.read("representations", np.array([index]), zero)[0], expected[index])
        goes_on.set()
        assert np.array_equal(found.result(20)[0], expected[2])
    assert np.array_equal(pickle.loads(pickle.dumps(cache)).all("representations"), expected)


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


def test_a_process_that_is_late_finds_what_another_has_begun(
    source: ImageSource, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def late(folder: Path) -> bool:
        found = is_cache(folder)
        calls.append(folder)
        if len(calls) == 1:  # the other one is quicker
            make(source, folder, crop_scale=0.5, rank=0, world=2)
        return found

    monkeypatch.setattr("rcg.data.build.is_cache", late)
    make(source, tmp_path / "late", crop_scale=0.5, rank=1, world=2)
    assert len(calls) == 2
    assert contents(tmp_path / "late") == contents(built)


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


def test_bf16_runs_under_autocast(source: ImageSource, tmp_path: Path) -> None:
    linear = nn.Linear(192, 4)
    fields = {"x": CacheField(linear, lambda images: linear(images.flatten(1)))}
    make(source, tmp_path / "full", fields)
    make(source, tmp_path / "low", fields, precision="bf16")
    full, low = Cache(tmp_path / "full").all("x"), Cache(tmp_path / "low").all("x")
    assert 1e-5 < np.abs(full - low).max() < 0.05


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
