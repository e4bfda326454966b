"""Shards of samples: the images of single files, byte for byte, however they are shared out and wherever a run is killed."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rcg.core.errors import UserError
from rcg.core.files import claimed
from rcg.core.parts import Share
from rcg.data.sources import open_source
from rcg.sampling.bulk import SampleShards
from rcg.sampling.folder import SamplingFolder

SETTINGS = {"model": "m", "seed": 3}
COUNT = 23


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "user-cache"))


class Killed(Exception):
    pass


def draw(indices: Sequence[int]) -> list[Image.Image]:
    """Noise that follows from an image's number."""
    made = [np.random.default_rng(i).integers(0, 255, (9, 8, 3)).astype(np.uint8) for i in indices]
    return [Image.fromarray(pixels) for pixels in made]


def fill(out: Path, count: int = COUNT, *, shards: bool = True, rank: int = 0, world: int = 1, **more: Any) -> None:
    share = Share(rank, world)
    kind = {k: more.pop(k) for k in ("per_shard", "labels", "kind") if k in more}
    folder = SampleShards(out, share=share, **{"per_shard": 5, **kind}) if shards else SamplingFolder(out, share)
    given = {"draw": draw, "batch_size": 4, "resume": False, "overwrite": False, **more}
    folder.fill(count, SETTINGS, model="m", **given)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def members(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            found |= {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    return found


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    fill(tmp_path / "whole")
    return contents(tmp_path / "whole")


def test_the_bytes_are_those_of_single_files(tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert sorted(whole) == [*(f"{i:06d}.tar" for i in range(5)), "grid.png", "sampling.json"]
    fill(tmp_path / "single", shards=False)
    single = contents(tmp_path / "single")
    found = members(tmp_path / "whole")
    assert list(found) == [f"{i:09d}.png" for i in range(COUNT)]
    for i in range(COUNT):
        assert found[f"{i:09d}.png"] == single[f"{i:06d}.png"]
    assert whole["grid.png"] == single["grid.png"]
    fill(tmp_path / "other", per_shard=7)
    assert members(tmp_path / "other") == found


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batches_do_not_matter(tmp_path: Path, whole: dict[str, bytes], batch_size: int) -> None:
    fill(tmp_path / "o", batch_size=batch_size)
    assert contents(tmp_path / "o") == whole


def test_processes_do_not_matter(tmp_path: Path, whole: dict[str, bytes]) -> None:
    for rank in (2, 1, 0):
        fill(tmp_path / "o", rank=rank, world=3)
    assert contents(tmp_path / "o") == whole


@pytest.mark.parametrize("shards", [True, False])
def test_two_runs_of_several_processes_do_not_mix(tmp_path: Path, shards: bool) -> None:
    refusals: list[str] = []

    def other(rank: int) -> None:
        folder = SampleShards(out, 5, Share(rank, 2)) if shards else SamplingFolder(out, Share(rank, 2))
        for begin in (folder.claim, partial(folder.fill, 9, draw=draw, batch_size=4)):
            with pytest.raises(UserError, match="another run is writing into") as caught:
                begin(settings={"model": "other"}, model="other", resume=False, overwrite=True)
            refusals.append(str(caught.value))

    def draw_meanwhile(indices: Sequence[int]) -> list[Image.Image]:
        other(1 - rank)
        return draw(indices)

    out = tmp_path / "o"
    for rank in (1, 0):
        fill(out, shards=shards, rank=rank, world=2, draw=draw_meanwhile)
    fill(tmp_path / "alone", shards=shards)
    assert len(refusals) >= 8
    assert contents(out) == contents(tmp_path / "alone")


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_a_killed_run_goes_on(tmp_path: Path, whole: dict[str, bytes], calls: int) -> None:
    drawn: list[int] = []

    def dying(indices: Sequence[int]) -> list[Image.Image]:
        if len(drawn) >= 4 * calls:
            raise Killed
        drawn.extend(indices)
        return draw(indices)

    with pytest.raises(Killed):
        fill(tmp_path / "o", draw=dying)
    with pytest.raises(UserError, match="already holds shards of this run; add --resume"):
        fill(tmp_path / "o")
    work = tmp_path / "o" / f".{4 * calls // 5:06d}.work"
    torn = next(work.glob("*.png"), None)
    if torn is not None:
        torn.write_bytes(torn.read_bytes()[:-9])
    (tmp_path / "o" / ".000000.tar.0123abcd.tar").write_bytes(b"half")
    again: list[int] = []

    def noting(indices: Sequence[int]) -> list[Image.Image]:
        again.extend(indices)
        return draw(indices)

    fill(tmp_path / "o", draw=noting, resume=True)
    assert contents(tmp_path / "o") == whole
    assert len(again) == COUNT - len(drawn) + (torn is not None)
    again.clear()
    fill(tmp_path / "o", draw=noting, resume=True, rank=0, world=2)
    assert contents(tmp_path / "o") == whole
    assert again == []


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_of_an_overwritten_run_are_drawn_anew(tmp_path: Path, kind: str) -> None:
    """The new run's first process has claimed the folder, but the job dies before the second one does."""
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    fill(tmp_path / "whole", kind=kind, per_shard=4)
    old = SampleShards(tmp_path / "o", 5, kind=kind)
    old.fill(COUNT, {"model": "m", "seed": 4}, lambda some: draw([100 + i for i in some]), model="m", batch_size=4,
             resume=False, overwrite=False)  # fmt: skip
    first = SampleShards(tmp_path / "o", 4, Share(0, 2), kind=kind)
    first.claim(SETTINGS, model="m", resume=False, overwrite=True)
    assert not (tmp_path / "o" / f"000001.{kind}").exists()
    assert not first.is_grid_ready(COUNT, SETTINGS)
    for rank in (1, 0):
        fill(tmp_path / "o", kind=kind, per_shard=4, rank=rank, world=2, resume=True)
    assert contents(tmp_path / "o") == contents(tmp_path / "whole")


def test_shards_are_claimed_from_one_process_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "o"), pytest.raises(UserError, match="another process is writing"):
        SampleShards(tmp_path / "o").claim(SETTINGS, model="m", resume=False, overwrite=False)


def test_a_shorter_run_grows(tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "o", 12)
    drawn: list[int] = []

    def noting(indices: Sequence[int]) -> list[Image.Image]:
        drawn.extend(indices)
        return draw(indices)

    with monkeypatch.context() as patch:
        patch.setattr("rcg.sampling.shard_folder.atomic_file", kill)
        with pytest.raises(Killed):  # while the opened shard lies there twice
            fill(tmp_path / "o", COUNT, resume=True, draw=noting)
    (tmp_path / "o" / ".000001.work").mkdir(exist_ok=True)
    fill(tmp_path / "o", COUNT, resume=True, draw=noting)
    assert contents(tmp_path / "o") == whole
    assert drawn == list(range(12, COUNT))
    fill(tmp_path / "o", 12, resume=True)
    assert contents(tmp_path / "o")["000004.tar"] == whole["000004.tar"]


def kill(*_: object) -> None:
    raise Killed


def test_labels_come_back(tmp_path: Path) -> None:
    fill(tmp_path / "o", 7, labels=[10, 9, 10])
    source = open_source(tmp_path / "o")
    assert source.class_names == ["9", "10"]
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 1, 1, 0, 1, 1]
    assert np.array_equal(np.asarray(source.image(6)), np.asarray(draw([6])[0]))


def test_what_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "single", 3, shards=False)
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=r"holds single images .000000\.png"):
            fill(tmp_path / "single", **flags)
    fill(tmp_path / "o", 3)
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=r"holds shards .000000\.tar.; add --shards"):
            fill(tmp_path / "o", shards=False, **flags)
    with pytest.raises(UserError, match=r"another run .images_per_shard 5, not 6"):
        fill(tmp_path / "o", per_shard=6, resume=True)
    fill(tmp_path / "o", 7, per_shard=6, overwrite=True)
    assert len(members(tmp_path / "o")) == 7
    with pytest.raises(UserError, match="no run to resume"):
        fill(tmp_path / "p", resume=True)
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "cat.tar").touch()
    with pytest.raises(UserError, match=r"holds no rcg-sample run .cat\.tar"):
        fill(tmp_path / "q")
    (tmp_path / "o" / "000001.tar").write_bytes(b"x")
    with pytest.raises(UserError, match="delete it and run"):
        fill(tmp_path / "o", 7, per_shard=6, resume=True)
    with pytest.raises(UserError, match=r"000000\.tar of another process is missing"):
        SampleShards(tmp_path / "none").write_grid(3, "run", patience=0.0)


@pytest.mark.parametrize("kind", ["tar", "parquet", "png"])
def test_damaged_images_are_one_sentence(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    given: dict[str, Any] = {"shards": False} if kind == "png" else {"kind": kind}
    fill(tmp_path / "o", 5, **given)
    file = tmp_path / "o" / f"000000.{kind}"
    whole = file.read_bytes()
    for mark in (b"IHDR", b"IDAT"):
        if kind == "png" and mark == b"IHDR":
            continue  # known for no image, and drawn again
        at = whole.index(mark) + 6
        file.write_bytes(whole[:at] + bytes(255 - b for b in whole[at : at + 4]) + whole[at + 4 :])
        with pytest.raises(UserError, match=rf"000000\.{kind} is damaged .* delete it and run the command again"):
            fill(tmp_path / "o", 5, resume=True, **given)
        file.unlink()
        fill(tmp_path / "o", 5, resume=True, **given)
        assert file.read_bytes() == whole


@pytest.mark.parametrize("shards", [False, True])
def test_what_is_there_is_not_kept_and_thrown_away(tmp_path: Path, shards: bool) -> None:
    fill(tmp_path / "o", 5, shards=shards)
    before = contents(tmp_path / "o")
    with pytest.raises(UserError, match="resume and overwrite exclude each other"):
        fill(tmp_path / "o", 5, shards=shards, resume=True, overwrite=True)
    assert contents(tmp_path / "o") == before


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_that_another_process_throws_away_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    fill(tmp_path / "o", 5, kind=kind)
    folder = SampleShards(tmp_path / "o", 5, kind=kind)
    assert folder.is_grid_ready(5, SETTINGS)
    exists = Path.exists
    (tmp_path / "o" / f"000000.{kind}").unlink()
    monkeypatch.setattr(
        Path, "exists", lambda path: path.suffix == f".{kind}" or exists(path)
    )  # looked a moment before
    assert not folder.is_grid_ready(5, SETTINGS)


@pytest.mark.parametrize("shards", [False, True])
def test_another_run_is_told_in_one_line(tmp_path: Path, shards: bool) -> None:
    kind = SampleShards if shards else SamplingFolder
    long = {"class_labels": list(range(1000))}
    fill(tmp_path, 3, shards=shards)
    with pytest.raises(UserError, match=r"holds another run .class_labels None, not .0, 1, 2") as caught:
        kind(tmp_path).claim(SETTINGS | long | {"images_per_shard": 5}, model="m", resume=True, overwrite=False)
    assert len(str(caught.value)) < 200 + len(str(tmp_path))


def rows(folder: Path) -> list[dict[str, Any]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    return [row for file in sorted(folder.glob("*.parquet")) for row in parquet.read_table(file).to_pylist()]


def test_parquet_holds_the_same_images(tmp_path: Path, whole: dict[str, bytes]) -> None:
    pytest.importorskip("pyarrow")
    fill(tmp_path / "p", kind="parquet", labels=[2, 7])
    held = members(tmp_path / "whole")
    assert rows(tmp_path / "p") == [
        {"image": {"bytes": held[f"{i:09d}.png"], "path": f"{i:09d}.png"}, "label": [2, 7][i % 2]} for i in range(COUNT)
    ]
    made = contents(tmp_path / "p")
    assert sorted(made) == [*(f"{i:06d}.parquet" for i in range(5)), "grid.png", "sampling.json"]
    assert made["grid.png"] == whole["grid.png"]
    for rank in (2, 1, 0):
        fill(tmp_path / "q", kind="parquet", labels=[2, 7], rank=rank, world=3, batch_size=3)
    assert contents(tmp_path / "q") == made
    source = open_source(tmp_path / "p")
    assert source.class_names == ["2", "7"]
    assert np.array_equal(np.asarray(source.image(6)), np.asarray(draw([6])[0]))
    fill(tmp_path / "n", kind="parquet")
    assert list(rows(tmp_path / "n")[0]) == ["image"]


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_parquet_goes_on_after_a_kill(tmp_path: Path, calls: int) -> None:
    pytest.importorskip("pyarrow")
    fill(tmp_path / "whole", kind="parquet", labels=[2, 7])
    drawn: list[int] = []

    def dying(indices: Sequence[int]) -> list[Image.Image]:
        if len(drawn) >= 4 * calls:
            raise Killed
        drawn.extend(indices)
        return draw(indices)

    with pytest.raises(Killed):
        fill(tmp_path / "o", kind="parquet", labels=[2, 7], draw=dying)
    fill(tmp_path / "o", 12, kind="parquet", labels=[2, 7], resume=True)  # ends within a shard, which is opened again
    fill(tmp_path / "o", kind="parquet", labels=[2, 7], resume=True)
    assert contents(tmp_path / "o") == contents(tmp_path / "whole")


def test_parquet_and_tar_do_not_mix(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    fill(tmp_path / "p", 7, kind="parquet")
    for flags in ({}, {"resume": True}):
        with pytest.raises(UserError, match=r"holds shards that are no \.tar files .000000\.parquet"):
            fill(tmp_path / "p", 7, **flags)
    (tmp_path / "p" / "000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"000001\.parquet is damaged .* delete it and run"):
        fill(tmp_path / "p", 7, kind="parquet", resume=True)
    fill(tmp_path / "p", 7, overwrite=True)
    assert sorted(contents(tmp_path / "p")) == ["000000.tar", "000001.tar", "grid.png", "sampling.json"]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_files_grow_with_shards_not_with_images(tmp_path: Path, kind: str) -> None:
    """⌈images / images per shard⌉ files and 2 more in the end, and never more open ones than a shard holds images."""
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    picture = Image.new("RGB", (8, 8))
    most = 0

    def watching(indices: Sequence[int]) -> list[Image.Image]:
        nonlocal most
        most = max(most, sum(1 for p in (tmp_path / "o").rglob("*") if p.is_file()))
        return [picture for _ in indices]

    fill(tmp_path / "o", 2000, kind=kind, per_shard=250, batch_size=250, draw=watching)
    assert sum(1 for _ in (tmp_path / "o").iterdir()) == 8 + 2
    assert most <= 8 + 2 + 250  # those of one shard lie open


def test_datasets_reads_the_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    fill(tmp_path / "o", 12, kind="parquet", labels=[2, 7])
    files = [str(file) for file in sorted((tmp_path / "o").glob("*.parquet"))]
    for streaming in (False, True):
        found = list(datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming,
                                           cache_dir=str(tmp_path / "hf")))  # fmt: skip
        assert [row["label"] for row in found] == [2, 7] * 6
        assert np.array_equal(np.asarray(found[11]["image"]), np.asarray(draw([11])[0]))
