"""Whose a folder of shards is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rcg.core.errors import UserError
from rcg.core.files import claimed
from rcg.core.parts import Share
from rcg.synthesis.plan import Plan
from rcg.synthesis.prompts import Prompt
from rcg.synthesis.run import Synthesis


class Grey:
    """Draws grey."""

    at_once, least = 2, 1.0

    def __init__(self) -> None:
        self.asked = 0

    def identity(self) -> dict[str, Any]:
        self.asked += 1
        return {}

    def draw(self, pictures: Sequence[Any], prompts: Sequence[Prompt]) -> list[Image.Image | None]:
        return [Image.new("RGB", (4, 4), "grey") for _ in pictures]


def test_shards_are_filled_by_one_run_at_a_time(tmp_path: Path) -> None:
    made = Synthesis(Plan([Prompt("a", "a")], 2, (), 0, 1), Grey(), tmp_path / "o")
    for work in (made.claim, made.run):
        with claimed(tmp_path / "o"), pytest.raises(UserError, match="another process is writing"):
            work()
    assert made.run() == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["000000.tar", "synthesis.json"]


def test_a_guidance_scale_that_is_not_heeded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scale of 0\.5 would be recorded but not heeded"):
        Synthesis(Plan([Prompt("a", "a")], 2, (2.0, 0.5), 0, 1), Grey(), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_what_does_many_parts_asks_once_what_the_images_depend_on(tmp_path: Path) -> None:
    prompts = [Prompt(name, name) for name in "abc"]
    Synthesis(Plan(prompts, 2, (), 0, 1), Grey(), tmp_path / "whole").run()
    drawer = Grey()
    job = Synthesis(Plan(prompts, 2, (), 0, 1), drawer, tmp_path / "o")
    job.claim()
    for i in range(job.parts):
        job.do(Share(i, job.parts))
    assert drawer.asked == 1
    for name in ("000000.tar", "000001.tar", "000002.tar", "synthesis.json"):
        assert (tmp_path / "o" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_shards_of_a_run_that_was_thrown_away_are_not_taken_for_the_next(tmp_path: Path) -> None:
    """One of two processes dies before it has thrown its old shards away."""
    out, prompts = tmp_path / "o", [Prompt(name, name) for name in "abc"]

    def made(seed: int, share: Share, **how: Any) -> Synthesis:
        return Synthesis(Plan(prompts, 2, (), seed, 1), Grey(), out, share=share, **how)

    made(0, Share()).run()
    old = {n: (out / f"00000{n}.tar").read_bytes() for n in range(3)}
    made(1, Share(0, 2), overwrite=True).run()
    made(1, Share(0, 2), resume=True).run()
    assert not (out / "000001.tar").exists()
    first = (out / "000000.tar").stat().st_mtime_ns
    made(1, Share(1, 2), overwrite=True).run()  # late, but of the same run: the other's shards stay
    assert (out / "000000.tar").stat().st_mtime_ns == first
    assert all((out / f"00000{n}.tar").read_bytes() != data for n, data in old.items())


def test_what_cannot_be_drawn_throws_nothing_away(tmp_path: Path) -> None:
    class Broken(Grey):
        def draw(self, pictures: Sequence[Any], prompts: Sequence[Prompt]) -> list[Image.Image | None]:
            raise UserError("no")

    def made(drawer: Grey, **how: Any) -> Synthesis:
        return Synthesis(Plan([Prompt("a", "a")], 2, (), 0, 1), drawer, tmp_path / "o", **how)

    made(Grey()).run()
    whole = {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()}
    for step in (Synthesis.run, Synthesis.claim):
        with pytest.raises(UserError, match="no"):
            step(made(Broken(), overwrite=True))
        assert {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()} == whole
    made(Grey(), overwrite=True).run()


def test_images_that_a_killed_run_was_refused_count(tmp_path: Path) -> None:
    class Strict(Grey):
        calls = 0

        def draw(self, pictures: Sequence[Any], prompts: Sequence[Prompt]) -> list[Image.Image | None]:
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            return [None for _ in pictures]

    def made(**how: Any) -> Synthesis:
        return Synthesis(Plan([Prompt("a", "a")], 4, (), 0, 1), Strict(), tmp_path / "o", **how)

    with pytest.raises(KeyboardInterrupt):
        made().run()
    assert made(resume=True).run() == 4
