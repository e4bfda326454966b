"""Damaged files of every kind: they work or are refused in one sentence. `benchmarks/fuzz.py` looks at many more."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, settings

from rcg.core.errors import UserError
from tests.fuzzing.targets import Files, judge, targets

EXAMPLES = {"images": 60, "checkpoints": 60, "caches": 50, "shards": 60, "texts": 50, "flags": 20}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_damaged_files_are_refused_or_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "memory"))
    outcomes: list[str | None] = []
    target = targets()[kind]

    @settings(
        max_examples=EXAMPLES[kind], derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(target.cases)
    def each(files: Files) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes.append(judge(target, files, Path(folder) / "case"))

    each()
    assert [what for what in outcomes if what not in (None, "UserError")] == []
    assert len(outcomes) >= EXAMPLES[kind] // 2
    assert "UserError" in outcomes


def test_a_finding_would_be_noticed(tmp_path: Path) -> None:
    from dataclasses import replace

    def fail(folder: Path) -> None:
        raise KeyError("x")

    assert (judge(replace(targets()["images"], use=fail), {"a": b""}, tmp_path) or "").startswith("KeyError")


def test_a_message_cannot_break_its_line() -> None:
    assert str(UserError("a\nb\x1b[2Jc ä…")) == "a\\nb\\x1b[2Jc ä…"
