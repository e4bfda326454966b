"""The cache when things go wrong: killed, full disk, damage, models and sources that do not fit."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rcg.core.errors import UserError
from rcg.core.files import write_json
from rcg.data import build as build_module
from rcg.data.cache import Cache, CacheField, build_cache
from rcg.data.images import ImageDataset
from rcg.data.layout import HEADER, read_manifest, save_array
from rcg.data.sources import ImageSource, open_source
from tests.data.caches import Encoder, Tokenizer, contents, make, make_in_child, representations, tokens
from tests.data.shards import picture, write_tar


def test_killed_and_continued(source: ImageSource, built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    chance = random.Random()  # a random moment each time; whatever it is, the result must be the same
    kept: dict[str, int] = {}
    unfinished = 0
    for attempt in range(8):
        slow = representations(pause=0.01) | tokens()
        process = multiprocessing.get_context("fork").Process(
            target=make_in_child, args=(source, folder, slow), kwargs={"crop_scale": 0.5}
        )
        process.start()
        while attempt == 7 and process.is_alive() and not (folder / "manifest.json").exists():
            time.sleep(0.005)  # once at least it gets so far, however busy the machine is
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


def test_two_builds_of_several_processes_do_not_mix(source: ImageSource, built: Path, tmp_path: Path) -> None:
    folder, asked = tmp_path / "two", list[str]()

    class Meanwhile(Encoder):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for fields, options in (
                (tokens(), {}),
                (here, {"crop_scale": 0.5, "seed": 1}),
                (here, {"crop_scale": 0.7}),
            ):
                with pytest.raises(UserError, match="another run is writing into"):
                    make(source, folder, fields, **{"crop_scale": 0.5, **options}, rank=1, world=2)
                asked.append("refused")
            return super().forward(images)

    model = Meanwhile()
    here = {"representations": CacheField(model, model)} | tokens()
    for rank in (1, 0):
        make(source, folder, here, crop_scale=0.5, rank=rank, world=2)
    assert asked
    made, whole = contents(folder), contents(built)
    assert {k: v for k, v in made.items() if k.endswith(".npy")} == {
        k: v for k, v in whole.items() if k.endswith(".npy")
    }
    assert made.keys() == whole.keys()


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


def test_damage_is_noticed_and_mended(source: ImageSource, built: Path) -> None:
    whole = contents(built)
    file = built / "shard-00002" / "tokens.npy"
    late = Cache(built)
    for size in (HEADER + 3, 0):
        os.truncate(file, size)
        with pytest.raises(UserError, match=r"tokens\.npy of the cache is damaged .* run the command") as caught:
            Cache(built)
        assert "\n" not in str(caught.value)
        with pytest.raises(
            UserError, match=r"tokens\.npy of the cache cannot be read \(the file has"
        ):  # damaged after it was opened
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


def test_other_labels_of_the_same_images_are_another_cache(tmp_path: Path) -> None:
    def labelled(name: str, classes: str) -> ImageSource:
        members = [(f"{i}.png", picture(i)) for i in range(6)]
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "x.tar", members + [(f"{i}.cls", c.encode()) for i, c in enumerate(classes)])
        return open_source(tmp_path / name, progress=False)

    sources = [
        labelled("fine", "abcabc"),
        labelled("swapped", "bacabc"),
        labelled("coarse", "aabbaa"),
        labelled("none", ""),
    ]
    assert len({source.fingerprint for source in sources}) == 1  # the images are the same
    assert len({ImageDataset(source, 8).fingerprint for source in sources}) == 4
    for source in sources:
        make(source, tmp_path / source.name / "cache", representations())
        for other in sources:
            if other is not source:
                with pytest.raises(UserError, match="of the same images with other labels; choose another folder"):
                    make(other, tmp_path / source.name / "cache", tokens())
    caches = [tmp_path / source.name / "cache" for source in sources]
    assert len({Cache(cache).fingerprint for cache in caches}) == 4
    manifest = read_manifest(caches[0])
    del manifest["source"]["label_digest"]  # as caches were before
    write_json(caches[0] / "manifest.json", manifest)
    make(sources[0], caches[0], tokens())
    assert Cache(caches[0]).num_classes == 3
    plain = open_source("shapes:n=6,size=16")
    old = hashlib.sha256(f"{plain.fingerprint} 8 none 1.0".encode()).hexdigest()[:32]
    assert ImageDataset(plain, 8).fingerprint == old  # runs and caches of sets whose names tell the classes go on
    make(plain, tmp_path / "plain", representations())
    assert "label_digest" not in read_manifest(tmp_path / "plain")["source"]


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

    for value, message in ((float("nan"), "not finite"), (1e5, "float16 cannot hold")):
        with pytest.raises(UserError, match=message):
            make(source, tmp_path / message, field(value, "float16"))
        assert not list((tmp_path / message).glob("*shard*"))
    whole = {"x": CacheField(Encoder(), lambda images: torch.full((len(images), 2), 70000), "uint16")}
    with pytest.raises(UserError, match="70000, which uint16 cannot hold"):
        make(source, tmp_path / "wide", whole)
    below = {"x": CacheField(Encoder(), lambda images: torch.full((len(images), 2), -1), "uint8")}
    with pytest.raises(UserError, match="from -1 to -1, which uint8 cannot hold"):
        make(source, tmp_path / "below", below)
    with pytest.raises(UserError, match="cannot be stored as uint16"):
        make(source, tmp_path / "kind", field(0.5, "uint16"))
    make(source, tmp_path / "half", field(0.5, "float16"))
    assert Cache(tmp_path / "half").batch(np.arange(3), np.arange(3).astype(np.uint64))["x"].dtype == torch.float32


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
