"""Runs that several processes compute, for tests: started here, `main` is what each of them executes."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from rcg.training.loop import train
from tests.forked import Forked
from tests.training.stages import MadeOfAll
from tests.training.test_loop import config

ROOT = Path(__file__).parents[2]


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun gives to process `rank`."""
    more = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return os.environ | {k: str(v) for k, v in more.items()} | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}


def compute(world: int, jobs: list[dict[str, Any]], module: str = __name__, **more: str) -> str:
    """Let `world` processes compute some runs, one after the other; what the first of them printed.

    Args:
        world: number of processes.
        jobs: `out`, `stage`, `stop` (0: to the end), and changes of the configuration, of each run.
        module: what each process executes.
        more: of the environment.
    """
    port = 20000 + (os.getpid() + world * 17) % 20000
    words = ["-m", module, json.dumps(jobs, default=str)]
    processes = [Forked(*words, env=environment(r, world, port) | more) for r in range(world)]
    said = [process.communicate(timeout=800) for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, errors[-2000:]
    return said[0][0]


def compute_one(out: str | Path, stage: str, stop: int, kill_at: int = 0, **changes: Any) -> None:
    """Compute a run in this process, which may be one of several.

    Args:
        out, stage, changes: of the run.
        stop: the step where it pauses, 0 for none.
        kill_at: the step at which the process of rank 1 kills itself, but only once; 0 for none.
    """
    mark = Path(out).parent / "killed"

    def watch(step: int) -> bool:
        if step == kill_at and os.environ.get("RANK") == "1" and not mark.exists():
            mark.write_text(f"at step {step}")
            os.kill(os.getpid(), signal.SIGKILL)
        return step == stop

    quick = {"eval_every": 1000, "preview_every": 1000}
    train(MadeOfAll.made(stage), config(Path(out), **quick, **changes), watch=watch if stop or kill_at else None)


if __name__ == "__main__":
    for job in json.loads(sys.argv[1]):
        compute_one(**job)
