"""The scripts in benchmarks/ belong to this state of the library: what they import is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as e:
        if str(e.name).split(".")[0] in {"rcg", *sys.argv[1:]}:
            raise
"""


@pytest.mark.skipif(not FOLDER.is_dir(), reason="an installed library has no benchmarks")
def test_every_script_can_be_imported() -> None:
    names = sorted(p.stem for p in FOLDER.glob("*.py"))
    assert len(names) > 20
    paths = f"import sys; sys.path[:0] = [{str(FOLDER)!r}, {str(FOLDER.parent)!r}]\n"
    done = subprocess.run([sys.executable, "-c", paths + IMPORT, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
