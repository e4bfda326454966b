"""Whose a folder of shards is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rcg.core.errors import UserError
from rcg.core.files import claimed
from rcg.synthesis.plan import Plan
from rcg.synthesis.prompts import Prompt
from rcg.synthesis.run import Synthesis


class Grey:
    """Draws grey."""

    at_once = 2

    def identity(self) -> dict[str, Any]:
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
