"""Imports go one way through the house. A new room gets a line in ALLOWED."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EVERYBODY = {"core"}  # rooms that anyone may import
STAGES = {"encoders", "rdm", "image_gen"}
TRAINING = {"training", "data", "eval"}
# room → rooms it may import, beside itself and EVERYBODY
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "training": set(),
    "data": set(),
    "eval": {"data"},
    **{stage: set() for stage in STAGES},
    **{f"{stage}/train": TRAINING for stage in STAGES},
    "sampling": set(),
    "engines": set(),
    "hub": set(),
    "pipeline": STAGES | {"hub", "sampling"},
    "synthesis": {"pipeline", "rdm", "sampling", "data"},
    "published": STAGES | {"pipeline", "data"},
    "recipe": STAGES | TRAINING | {"pipeline", "sampling"},
    "check": STAGES | {"data", "eval", "pipeline", "recipe", "sampling"},
    "configs": set(),
    "box": set(),
    "tune": {"eval", "pipeline"},
    "inversion": STAGES | {"data", "pipeline", "sampling"},
    "scripts": {
        "pipeline",
        "hub",
        "published",
        "sampling",
        "recipe",
        "check",
        "tune",
        "synthesis",
        "inversion",
        "engines",
    }
    | STAGES
    | TRAINING,
}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "rcg").with_suffix("").parts
    if parts[0] in STAGES and parts[-1] == "train":
        return f"{parts[0]}/train"
    return parts[0]


def imported_rooms(path: Path) -> set[str]:
    """Rooms of rcg imported anywhere in a file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{a.name}" for a in node.names} if node.module == "rcg" else {node.module or ""}
    return {n.split(".")[1] for n in names if n.startswith("rcg.") and n != "rcg.__version__"}


FILES = sorted(p for p in (ROOT / "rcg").rglob("*.py") if p != ROOT / "rcg/__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    own = room.split("/")[0]
    forbidden = imported_rooms(path) - ALLOWED[room] - EVERYBODY - {own}
    assert not forbidden, f"{room} may not import {sorted(forbidden)}"


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_models_do_not_need_their_training(stage: str) -> None:
    for path in (ROOT / "rcg" / stage).rglob("*.py"):
        if path.stem != "train":
            assert not re.search(rf"rcg\.{stage}(\.\w+)*\.train\b", path.read_text()), path


def test_the_rule_would_notice(tmp_path: Path) -> None:
    bad = tmp_path / "x.py"
    bad.write_text("def f():\n    from rcg.scripts import sample\n    import rcg.pipeline\n    from rcg import rdm\n")
    assert imported_rooms(bad) == {"scripts", "pipeline", "rdm"}


def test_importing_rcg_is_quick_and_quiet() -> None:
    code = "import sys, rcg; assert 'torch' not in sys.modules; print(rcg.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
