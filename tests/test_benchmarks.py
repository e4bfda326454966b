"""The scripts in benchmarks/ belong to this state of the library: what they import is there."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import Forked

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
def test_a_worker_that_fails_ends_those_that_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    scaling = importlib.import_module("scaling")
    waiting, failing, good = "import time; time.sleep(600)", "raise SystemExit(3)", ""
    for codes, failed in (((waiting, failing), 1), ((failing, waiting), 0), ((good, good), None)):
        processes = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
        assert scaling.end_together(processes) == failed
        assert all(process.returncode is not None for process in processes)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="an installed library has no benchmarks")
def test_every_script_can_be_imported() -> None:
    names = sorted(p.stem for p in FOLDER.glob("*.py"))
    assert len(names) > 20
    paths = f"import sys; sys.path[:0] = [{str(FOLDER)!r}, {str(FOLDER.parent)!r}]\n"
    process = Forked("-c", paths + IMPORT, *names)
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda p: p.stem)
def test_shell_scripts_without_arguments_say_what_they_need(script: Path) -> None:
    done = subprocess.run(["sh", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: sh benchmarks/{script.name} ")
