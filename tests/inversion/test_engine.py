"""Training sets: filtered, balanced, traced, resumed; from tables and from an RDM."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.files import claimed
from rcg.core.parts import Share
from rcg.core.pictures import from_pil
from rcg.data.sources import open_source
from rcg.inversion.choices import Chooser, Variation
from rcg.inversion.engine import balanced, make_set
from rcg.inversion.proposers import FromRDM, FromTable
from rcg.inversion.representations import RepresentationGenerator
from rcg.inversion.selection import ClassFilter, Hard
from rcg.inversion.stores import ClassFolders, Shards
from tests.components import DIM, SIZE, get_dummy_pipeline

TABLE = np.zeros((4, 3), np.float32)
TABLE[:2, 0], TABLE[2:, 1] = 0.8, 0.8  # red ones, then green ones
LABELS = np.array([0, 0, 1, 1])
NAMES = ["red", "green"]
IDS = ["a", "b", "c", "d"]


class Painter:
    """A condition is a colour."""

    def __init__(self) -> None:
        self.drawn = 0

    def draw(self, conditions: Tensor, scales: list[float], seeds: list[int]) -> Tensor:
        self.drawn += len(conditions)
        return conditions.clamp(0, 1)[:, :, None, None].expand(-1, -1, 4, 4)

    def drawing(self) -> dict[str, object]:
        return {"steps": 1}


class Mean(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def proposer(seed: int = 0, noise: float = 0.1, **more: Any) -> FromTable:
    return FromTable(TABLE, IDS, "f", Chooser(4, LABELS, Variation(noise=(noise,), **more), seed))


def make(
    out: Path, of: Any = None, count: int = 6, painter: Any = None, share: Any = (0, 1), shards: int = 0, **more: Any
) -> list[dict[str, Any]]:
    store = Shards(out, NAMES, Share(*share), shards) if shards else ClassFolders(out, NAMES, Share(*share))
    return make_set(
        painter or Painter(), of or proposer(), balanced(count, [0, 1]), store, identity="g", class_names=NAMES,
        progress=False, **more,
    )  # fmt: skip


def test_a_set_is_filled_by_one_run_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "out"), pytest.raises(UserError, match="another process is writing"):
        make(tmp_path / "out")
    make(tmp_path / "out")


def keeper(agreement: float = 1.0) -> ClassFilter:
    return ClassFilter(Mean(), "mean", torch.from_numpy(TABLE), LABELS, neighbors=2, agreement=agreement)


def test_classes_are_balanced_and_every_image_is_traced(tmp_path: Path) -> None:
    records = make(tmp_path / "out", proposer(interpolation=(0.25,)), count=7)
    lines = [json.loads(line) for line in (tmp_path / "out/images.jsonl").read_text().splitlines()]
    assert lines == records
    assert [r["class"] for r in records] == ["red"] * 4 + ["green"] * 3
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")}
    assert files == {r["file"] for r in records}
    for record in records:
        (first, second) = record["sources"]
        assert IDS[first["row"]] == first["id"]
        assert (first["share"], second["share"]) == (0.75, 0.25)
        assert LABELS[first["row"]] == LABELS[second["row"]] == record["label"]


def pixels(out: Path) -> Tensor:
    from PIL import Image

    return from_pil([Image.open(p) for p in sorted(out.rglob("*.png"))])


def test_batches_processes_and_resuming_change_nothing(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", keep=keeper(), batch_size=100)
    make(tmp_path / "parts", keep=keeper(), count=3, batch_size=1)
    for rank in (1, 0):
        parts = make(tmp_path / "parts", keep=keeper(), batch_size=2, share=(rank, 2))
    assert whole == parts
    assert torch.equal(pixels(tmp_path / "whole"), pixels(tmp_path / "parts"))
    painter = Painter()
    make(tmp_path / "whole", keep=keeper(), painter=painter)
    assert painter.drawn == 0


def test_images_that_fell_out_of_their_class_are_drawn_anew(tmp_path: Path) -> None:
    wild = proposer(noise=0.6)
    kept = make(tmp_path / "kept", wild, count=20, keep=keeper(), attempts=50)
    assert len(kept) == 20
    assert all(r["agreement"] == 1 for r in kept)
    assert any(r["attempt"] > 0 for r in kept)
    features, labels = pixels(tmp_path / "kept").mean(dim=(2, 3)), torch.tensor([0] * 10 + [1] * 10)
    order = [r["label"] for r in sorted(kept, key=lambda r: r["file"])]
    assert (features[:, :2].argmax(dim=1) == torch.tensor(order)).all()
    assert len(labels) == len(features)


class Certain(nn.Module):
    """The redder, the more certain."""

    def forward(self, images: Tensor) -> Tensor:
        red = images.mean(dim=(2, 3))[:, :1]
        return torch.cat([5 * red, torch.zeros_like(red)], dim=1)


def test_of_several_candidates_the_hardest_is_kept(tmp_path: Path) -> None:
    hard = Hard(Certain(), "certain", 5)
    chosen = make(tmp_path / "hard", proposer(noise=0.3), hard=hard, keep=keeper(), attempts=20)
    plain = make(tmp_path / "plain", proposer(noise=0.3))
    red = sorted((tmp_path / "hard/red").glob("*.png"))
    assert len(chosen) == len(plain) == 6
    assert all(r["entropy"] > 0 and r["agreement"] == 1 for r in chosen)
    assert any(r["attempt"] > 0 for r in chosen)
    means = [float(from_pil([_open(p)])[0, 0].mean()) for p in red]
    others = [float(from_pil([_open(p)])[0, 0].mean()) for p in sorted((tmp_path / "plain/red").glob("*.png"))]
    assert sum(means) < sum(others)
    for size in (1, 4):  # any batch size, the same choice
        assert (
            make(tmp_path / f"b{size}", proposer(noise=0.3), hard=hard, keep=keeper(), attempts=20, batch_size=size)
            == chosen
        )
    entropy = Hard(Certain(), "c", 2).entropies(torch.zeros(1, 3, 4, 4))
    assert entropy == pytest.approx([np.log(2)])
    with pytest.raises(UserError, match="candidates is 1"):
        Hard(Certain(), "c", 1)


def _open(path: Path) -> Any:
    from PIL import Image

    return Image.open(path)


def test_shards_hold_the_same_images_and_are_gone_on_with(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain", count=8)
    whole = make(tmp_path / "whole", count=8, shards=3)
    source = open_source(tmp_path / "whole", min_size=4)
    assert source.class_names == ["green", "red"]
    assert sorted(p.name for p in (tmp_path / "whole").iterdir()) == [
        "000000.tar", "000001.tar", "000002.tar", "images.jsonl", "shards.json",
    ]  # fmt: skip
    strip = {"file", "shard"}
    key = lambda r: (r["label"], r["seed"])  # noqa: E731
    assert [{k: v for k, v in r.items() if k not in strip} for r in sorted(whole, key=key)] == [
        {k: v for k, v in r.items() if k not in strip} for r in sorted(plain, key=key)
    ]
    assert source.labels is not None
    assert [source.class_names[label] for label in source.labels] == ["red", "green"] * 4
    first = from_pil([_open(tmp_path / "plain/red/000000.png")])
    assert torch.equal(from_pil([source.image(0)]), first)
    make(tmp_path / "parts", count=4, shards=3, share=(0, 1))  # the last shard of a shorter set is opened again
    for rank in (1, 0):
        make(tmp_path / "parts", count=8, shards=3, share=(rank, 2), batch_size=2)
    for i in range(3):
        name = f"00000{i}.tar"
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    painter = Painter()
    assert make(tmp_path / "parts", count=8, shards=3, painter=painter) == whole
    assert painter.drawn == 0
    with pytest.raises(UserError, match="another run"):
        make(tmp_path / "whole", proposer(seed=1), count=8, shards=3)
    with pytest.raises(UserError, match="not empty"):
        make(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:.*fell out")
def test_shards_are_packed_as_they_are_full(tmp_path: Path) -> None:
    """Not when all are: a set of a million images would be as many files until then."""

    class Watching(Painter):
        loose = 0

        def draw(self, conditions: Tensor, scales: list[float], seeds: list[int]) -> Tensor:
            self.loose = max(self.loose, len(list((tmp_path / "out").rglob("*.png"))))
            return super().draw(conditions, scales, seeds)

    painter = Watching()
    made = make(tmp_path / "out", proposer(noise=0.8), 30, painter, shards=4, keep=keeper(), attempts=1, batch_size=2)
    assert 4 < len(made) < 30
    assert painter.loose < 4


def test_going_on_must_be_asked_for_where_it_is_to_be(tmp_path: Path) -> None:
    make(tmp_path / "out", count=2)
    with pytest.raises(UserError, match="add --resume"):
        make(tmp_path / "out", resume=False)
    make(tmp_path / "out", proposer(seed=1), count=2, resume=False, overwrite=True)
    assert len(make(tmp_path / "out", proposer(seed=1), count=2)) == 2


@pytest.mark.parametrize("shards", [0, 2])
def test_what_may_be_thrown_away_is_made_anew(tmp_path: Path, shards: int) -> None:
    make(tmp_path / "out", shards=shards)
    anew = make(tmp_path / "out", proposer(seed=1), shards=shards, overwrite=True)
    assert anew == make(tmp_path / "other", proposer(seed=1), shards=shards)
    assert {r["seed"] for r in anew}.isdisjoint(r["seed"] for r in make(tmp_path / "first", shards=shards))


class Broken(Painter):
    """Cannot draw."""

    def draw(self, conditions: Tensor, scales: list[float], seeds: list[int]) -> Tensor:
        raise UserError("this generator cannot be guided.")


@pytest.mark.parametrize("shards", [0, 2])
def test_what_fails_at_once_throws_nothing_away(tmp_path: Path, shards: int) -> None:
    out, rest = tmp_path / "out", {"shards": shards, "resume": False}
    made = make(out, shards=shards)
    held = {p: p.read_bytes() for p in out.rglob("*.*") if p.is_file()}
    with pytest.raises(UserError, match="cannot be guided"):
        make(out, proposer(seed=1), painter=Broken(), overwrite=True, **rest)
    assert {p: p.read_bytes() for p in out.rglob("*.*") if p.is_file()} == held
    assert make(out, shards=shards) == made
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):  # before anything is drawn
        make(tmp_path / "full", painter=Broken(), overwrite=True, **rest)
    for count in (1, 4):  # any batch size, and each image is drawn once
        painter = Painter()
        assert make(out, painter=painter, overwrite=True, batch_size=count, **rest) == made
        assert painter.drawn == 6


@pytest.mark.parametrize("shards", [0, 2])
def test_a_set_that_failed_at_once_does_not_bar_another(tmp_path: Path, shards: int) -> None:
    with pytest.raises(UserError, match="cannot be guided"):
        make(tmp_path / "out", painter=Broken(), shards=shards, resume=False)
    again = make(tmp_path / "out", proposer(seed=1), shards=shards, resume=False)
    assert again == make(tmp_path / "other", proposer(seed=1), shards=shards)


@pytest.mark.parametrize("shards", [0, 2])
def test_what_a_killed_process_did_not_throw_away_is_not_taken_for_the_new_set(tmp_path: Path, shards: int) -> None:
    out = tmp_path / "out"
    make(out, shards=shards)
    make(out, proposer(seed=1), shards=shards, share=(0, 2), resume=False, overwrite=True)  # the other one never began
    assert make(out, proposer(seed=1), shards=shards) == make(tmp_path / "whole", proposer(seed=1), shards=shards)


@pytest.mark.parametrize("shards", [0, 2])
def test_a_process_that_makes_all_anew_leaves_the_others_what_they_drew_since(tmp_path: Path, shards: int) -> None:
    out, rest = tmp_path / "out", {"shards": shards, "resume": False, "overwrite": True}
    make(out, count=12, shards=shards)
    make(out, share=(0, 2), count=8, **rest)
    assert len(make(out, share=(1, 2), count=8, **rest)) == 8
    assert make(out, count=8, shards=shards) == make(tmp_path / "whole", count=8, shards=shards)
    with pytest.raises(UserError, match="add --resume"):
        make(out, share=(1, 2), count=8, shards=shards, resume=False)


@pytest.mark.filterwarnings("ignore:.*fell out")
@pytest.mark.parametrize("shards", [0, 4])
def test_a_process_that_makes_all_anew_tries_what_others_left_out_and_keeps_what_they_leave_out_now(
    tmp_path: Path, shards: int
) -> None:
    out, wild = tmp_path / "out", proposer(noise=0.8)
    how: Any = {"count": 30, "keep": keeper(), "attempts": 1, "shards": shards}
    anew: Any = {**how, "resume": False, "overwrite": True}
    for rank in (0, 1, 2):
        made = make(out, wild, share=(rank, 3), **how)
    painter = Painter()
    make(out, wild, share=(0, 2), painter=painter, **anew)
    held = next(out.glob("left-out-*-00000.txt")).read_bytes()
    assert make(out, wild, share=(1, 2), painter=painter, **anew) == made
    assert painter.drawn == 30
    assert [p.name[-9:-4] for p in sorted(out.glob("left-out-*.txt"))] == ["00000", "00001"]
    assert next(out.glob("left-out-*-00000.txt")).read_bytes() == held


def test_a_process_may_find_a_set_that_another_has_begun_since_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, listed = tmp_path / "out", Path.iterdir
    out.mkdir()

    def slow(folder: Path) -> Any:
        monkeypatch.undo()
        found = list(listed(folder))
        make(out, share=(0, 2), resume=False)
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", slow)
    assert len(make(out, share=(1, 2), resume=False)) == 6


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "../oops", "n/a", "a\\b", "red"])
def test_classes_whose_folders_would_be_others_are_refused(tmp_path: Path, name: str) -> None:
    says = "two classes are called 'red'" if name == "red" else "no folder can be called"
    with pytest.raises(UserError, match=says):
        ClassFolders(tmp_path / "out", ["red", name])
    if name == "red":
        with pytest.raises(UserError, match=says):
            Shards(tmp_path / "out", ["red", name])


def test_a_place_that_cannot_be_filled_is_left_out_and_said_so(tmp_path: Path) -> None:
    wrong = ClassFilter(Mean(), "mean", torch.from_numpy(TABLE), 1 - LABELS, neighbors=2, agreement=1.0)
    with pytest.warns(UserWarning, match="6 of 6 images fell out"):
        assert make(tmp_path / "out", proposer(noise=0.0), keep=wrong, attempts=2) == []


@pytest.mark.parametrize("shards", [0, 4])
def test_what_was_left_out_is_not_tried_again_and_said_again(tmp_path: Path, shards: int) -> None:
    out, wild = tmp_path / "out", proposer(noise=0.8)
    with pytest.warns(UserWarning, match="fell out") as first:
        made = make(out, wild, count=30, keep=keeper(), attempts=1, shards=shards)
    assert 0 < len(made) < 30
    held = {p: (p.stat().st_ino, p.read_bytes()) for p in out.rglob("*.*") if p.name != "images.jsonl"}
    notes = next(out.glob("left-out-*.txt"))
    notes.write_text(notes.read_text() + '\n"red/00')  # a kill's
    painter = Painter()
    with pytest.warns(UserWarning, match="fell out") as again:
        assert make(out, wild, count=30, keep=keeper(), attempts=1, shards=shards, painter=painter) == made
    assert painter.drawn == 0
    assert str(again[0].message) == str(first[0].message)
    now = {p: (p.stat().st_ino, p.read_bytes()) for p in out.rglob("*.*") if p.name != "images.jsonl"}
    assert {p: v for p, v in now.items() if p != notes} == {p: v for p, v in held.items() if p != notes}
    assert now[notes][1] == held[notes][1]
    with pytest.warns(UserWarning, match="fell out"):
        make(out, wild, count=60, keep=keeper(), attempts=1, shards=shards, painter=painter)
    assert painter.drawn == 30  # the new ones alone
    make(out, proposer(), count=30, shards=shards, resume=False, overwrite=True)
    assert not list(out.glob("left-out-*.txt"))


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    (out / "red/000001.png").unlink()
    (out / "green/000001.png").unlink()
    for name in ("red/.000001.png.0a0a0a0a.png", "green/.000001.png.0a0a0a0a.png", "green/.000002.png.0a0a0a0a.png"):
        (out / name).write_bytes(b"half")
    make(out, share=(1, 2))
    left = [p.relative_to(out).as_posix() for p in out.rglob(".*")]
    assert left == ["green/.000001.png.0a0a0a0a.png"]  # the other process may be writing its own at this moment
    (out / ".images.jsonl.0a0a0a0a.jsonl").write_text("half")
    make(out)
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize("shards", [0, 3])
def test_a_set_that_is_asked_for_fewer_images_keeps_and_lists_all(tmp_path: Path, shards: int) -> None:
    whole = make(tmp_path / "out", count=12, shards=shards)
    files = sorted((p, p.stat().st_ino) for p in (tmp_path / "out").rglob("*.*") if p.name != "images.jsonl")
    fewer = make(tmp_path / "out", count=4, shards=shards)
    assert {r["file"] for r in fewer} == {r["file"] for r in whole}
    assert sorted((p, p.stat().st_ino) for p in (tmp_path / "out").rglob("*.*") if p.name != "images.jsonl") == files
    lines = (tmp_path / "out" / "images.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == fewer
    assert make(tmp_path / "out", count=12, shards=shards) == whole
    anew = make(tmp_path / "out", count=4, shards=shards, resume=False, overwrite=True)
    assert len(anew) == 4


def test_other_settings_in_the_folder_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(UserError, match="other conditions"):
        make(tmp_path / "out", proposer(seed=1))
    with pytest.raises(UserError, match="other filter"):
        make(tmp_path / "out", keep=keeper())
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not empty.*x\.txt"):
        make(tmp_path / "full")


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="class 7"):
        make_set(Painter(), proposer(), {7: 1}, ClassFolders(tmp_path / "o", NAMES), identity="g", class_names=NAMES)  # type: ignore[arg-type]
    for bad, says in (({"neighbors": 9}, "neighbors is 9"), ({"agreement": 0.0}, "agreement is 0")):
        with pytest.raises(UserError, match=says):
            ClassFilter(Mean(), "m", torch.from_numpy(TABLE), LABELS, **{"neighbors": 2, **bad})  # type: ignore[arg-type]
    few = ClassFilter(Mean(), "m", torch.from_numpy(TABLE), np.array([0, 0, 0, 1]), neighbors=4)
    with pytest.raises(
        UserError, match=r"no image of class green can pass the filter: 0\.5 of its 4 .* only 1 real"
    ) as refused:
        make(tmp_path / "few", keep=few)
    ways = re.findall(r"--(neighbors|agreement) ([\d.]*\d)", str(refused.value))
    assert ways == [("neighbors", "2"), ("agreement", "0.25")]
    for name, value in ways:
        setattr(few, name, type(getattr(few, name))(value))
        few.require(1, "green")  # either is enough
        few.neighbors, few.agreement = 4, 0.5
    with pytest.raises(UserError, match=r"only 0 real images; add some\."):
        few.require(2, "blue")
    assert not (tmp_path / "few").exists()
    with pytest.raises(UserError, match="3 labels"):
        ClassFilter(Mean(), "m", torch.from_numpy(TABLE), LABELS[:3], neighbors=2)
    with pytest.raises(UserError, match="standardised"):
        FromTable(np.zeros((2, 3, 4), np.float32), IDS, "f", Chooser(2, None, Variation(), 0), standardized=True)


def test_from_representations_and_from_the_rdm_of_a_pipeline(tmp_path: Path) -> None:
    pipe = get_dummy_pipeline(num_classes=2)
    generator = RepresentationGenerator(pipe)
    real = pipe.encode(torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))).numpy()
    chooser = Chooser(4, LABELS, Variation(noise=(0.05,), interpolation=(0.3,), guidance=(1.0, 2.0)), 0)
    table = FromTable(real, IDS, "f", chooser, standardized=True)
    records = make(tmp_path / "table", table, count=4, painter=generator, batch_size=3)
    again = make(tmp_path / "again", table, count=4, painter=generator, batch_size=1)
    assert records == again
    assert torch.equal(pixels(tmp_path / "table"), pixels(tmp_path / "again"))
    rdm = pipe.representation_generator
    assert rdm is not None
    drawn = FromRDM(rdm, "r", [0, 1], seed=3)
    records = make(tmp_path / "rdm", drawn, count=4, painter=generator)
    assert [r["label"] for r in records] == [0, 0, 1, 1]
    assert all(r["sources"] == [] and r["rdm_seed"] for r in records)
    assert generator.shape == (DIM,)
    with pytest.raises(UserError, match="classes 0 to 1"):
        FromRDM(rdm, "r", [0, 2], seed=3)
    with pytest.raises(UserError, match="classes 0 to 1"):
        FromRDM(rdm, "r", [None], seed=3)
