"""Python processes for tests, forked from one that has imported the library and done nothing else.

Python, torch and this library take seconds to start, and many tests need processes: two that compute together, or one to kill.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.multiprocessing as mp

ROOT = Path(__file__).parents[1]
IMPORTED = ["pytest", "rcg.pipeline", "rcg.training.loop", "rcg.encoders.train", "rcg.rdm.train", "rcg.image_gen.train",
            "rcg.image_gen.tokenizers.train", "rcg.eval.evaluate", "rcg.recipe.run"]  # fmt: skip
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTED)


def _run(words: list[str], environment: dict[str, str], said: str) -> None:
    for number, stream in enumerate((sys.stdout, sys.stderr), 1):
        stream.flush()
        os.dup2(os.open(f"{said}/{number}", os.O_WRONLY | os.O_CREAT), number)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    kind, what, *arguments = words
    sys.argv = [what if kind == "-m" else kind, *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})


class Forked:
    """A running `python WORDS`, in the root of the repository; named as `subprocess.Popen` names things.

    Args:
        words: `-m`, the name of a module and its arguments, or `-c`, code and its arguments.
        env: of the process; None is this one's.
    """

    def __init__(self, *words: str | Path, env: Mapping[str, str] | None = None) -> None:
        self._said = tempfile.TemporaryDirectory(prefix="rcg-test-said-")
        environment = dict(os.environ if env is None else env)
        self._process = CONTEXT.Process(target=_run, args=([str(w) for w in words], environment, self._said.name))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """None while it runs; −9 after SIGKILL."""
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = 600) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"a process is not done after {timeout} s"
        return self._process.exitcode

    def communicate(self, timeout: float | None = 600) -> tuple[str, str]:
        """What it has printed, and what it has said on stderr, once it is done."""
        self.wait(timeout)
        said = [Path(self._said.name) / name for name in "12"]
        out, errors = (file.read_text() if file.exists() else "" for file in said)
        return out, errors


def both(work: Callable[[int, str], None], folder: str) -> None:
    """Call `work(rank, folder)`, a function of a module, in two processes."""
    mp.start_processes(work, args=(folder,), nprocs=2, start_method="forkserver")
