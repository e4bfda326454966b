"""Runs that several processes compute with FSDP, for tests: `main` is what each of them executes."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from rcg.training import loop
from rcg.training.shards import own
from rcg.training.stage import Batch, Stage
from tests.training import objectives
from tests.training.elastic import compute
from tests.training.stages import MadeOfAll, RegressionStage
from tests.training.test_loop import config
from tests.training.test_optimizers import with_blocks

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
BAD_STEP = 7


def shard(jobs: list[dict[str, Any]], **more: str) -> str:
    """See `elastic.compute`; by two processes with FSDP, or what `more` sets in its place."""
    return compute(2, jobs, "tests.training.sharded", **{**FSDP, **more})


class PoisonedInOne(RegressionStage):
    """In one step the loss of the second process is NaN; the first sees nothing of it."""

    calls = 0

    def prepare(self, batch: Batch) -> Batch:
        self.calls += 1
        bad = self.calls == BAD_STEP and os.environ.get("RANK") == "1"
        return batch | {"y": batch["y"] * float("nan")} if bad else batch


def stage_of(name: str) -> Stage:
    """A tiny stage by name, with the same weights each time."""
    if name == "poisoned":
        return PoisonedInOne(dropout=0.0, norm=False)
    if name == "muon":
        return with_blocks(RegressionStage(dropout=0.0, norm=False))
    return objectives.made(name) if name in objectives.NAMES else MadeOfAll.made(name)


class Measured(loop._Run):
    """Leaves in the run's folder what each process held at the end, and what a whole model is."""

    def run(self) -> dict[str, float]:
        figures = super().run()
        parameters = [p for o in self.stage.objectives.values() for p in o.parameters()]
        states = [
            v for o in self.optimizers.values() for values in o.state.values() for k, v in values.items() if k != "step"
        ]
        kinds = {"weights": parameters, "optimizer": states, "averages": list(self.ema.state().values())}
        held = {k: [sum(own(t).numel() for t in some), sum(t.numel() for t in some)] for k, some in kinds.items()}
        rank = self.accelerator.process_index
        (self.folder / f"held-{rank}.json").write_text(json.dumps(held))
        return figures


def compute_one(out: str | Path, stage: str, stop: int = 0, kill_at: int = 0, **changes: Any) -> None:
    """See `elastic.compute_one`; here all processes kill themselves."""
    mark = Path(out).parent / "killed"

    def watch(step: int) -> bool:
        if step == kill_at and not mark.exists():
            torch.distributed.barrier()
            if os.environ["RANK"] == "1":
                mark.write_text(f"at step {step}")
            os.kill(os.getpid(), signal.SIGKILL)
        return step == stop

    settings = {"eval_every": 1000, "preview_every": 1000, "clip_grad": 1.0, **changes}
    loop.train(stage_of(stage), config(Path(out), **settings), watch=watch if stop or kill_at else None)


if __name__ == "__main__":
    loop._Run = Measured  # type: ignore[misc]
    for job in json.loads(sys.argv[1]):
        compute_one(**job)
        print(f"done {job['stage']}", flush=True)
