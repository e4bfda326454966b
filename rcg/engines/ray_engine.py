"""Jobs on a Ray cluster, by Ray Data: it starts and stops workers as there is work, and repeats what a dead one was at.

A worker loads the models once and does part after part. Folders and files are seen by all machines under the same names
(a shared file system), as results are written where they belong and not sent around.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rcg.core.errors import UserError
from rcg.core.parts import Opener, Share

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RayResources:
    """What a worker takes, and how many there may be.

    Attributes:
        cpus: of a worker, which computes with as many threads.
        gpus: of a worker; None: one where the cluster has some, else none.
        workers: at most at a time; None: as many as the cluster has room for, and autoscaling adds.
    """

    cpus: int = 1
    gpus: float | None = None
    workers: int | None = None


class _Worker:
    """Does parts; a process of its own on some machine of the cluster."""

    def __init__(self, opener: Opener, parts: int, folder: str, threads: int) -> None:
        self.job = _open(opener, folder, threads)
        self.parts = parts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for number in batch["id"]:
            self.job.do(Share(int(number), self.parts))
        return {"id": batch["id"]}


def _open(opener: Opener, folder: str, threads: int) -> Any:
    import torch

    if not Path(folder).is_dir():
        raise UserError(
            f"the folder {folder} is not on the machine {os.uname().nodename}; let all machines of the cluster share a file "
            "system, and start the command in a folder of it."
        )
    os.chdir(folder)
    torch.set_num_threads(threads)
    return opener()


def _claim(opener: Opener, folder: str, threads: int) -> int:
    job = _open(opener, folder, threads)
    job.claim()
    return int(job.parts)


def _finish(opener: Opener, folder: str, threads: int) -> None:
    _open(opener, folder, threads).finish()


def run_on_ray(
    opener: Opener, resources: RayResources | None = None, on_part: Progress = lambda done, of: None
) -> None:
    """Claim, do and finish a job on the cluster that Ray finds (`RAY_ADDRESS`, or one on this machine, else started here).

    Workers that die (a machine is taken away, memory runs out) are started again, and their parts repeated, by Ray.

    Args:
        opener: makes the job; must be picklable.
        resources: of workers.
        on_part: called with the number of parts that are done, and of all.

    Raises:
        UserError: Ray is not installed, or the job's own.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("--engine ray needs Ray; run: pip install 'rcg[ray]'.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--engine ray starts its processes itself; start the command once, without torchrun.")
    import ray

    resources = resources or RayResources()
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody unless the user wants it
        ray.init(log_to_driver=False, configure_logging=True, logging_level="warning")
    try:
        _run(opener, resources, on_part)
    except Exception as e:
        if (own := _users_error(e)) is not None:
            raise own from None
        raise
    finally:
        if started:
            ray.shutdown()


def _run(opener: Opener, resources: RayResources, on_part: Progress) -> None:
    import ray.data

    gpus = resources.gpus
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
    where = (opener, str(Path.cwd()), resources.cpus)
    alone = ray.remote(num_cpus=resources.cpus, num_gpus=gpus, max_retries=3)
    parts = ray.get(alone(_claim).remote(*where))
    on_part(0, parts)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.log_internal_stack_trace_to_stdout = False
    if parts:
        most = resources.workers or parts
        opener, folder, threads = where
        done = 0
        numbers = ray.data.range(parts, override_num_blocks=parts)
        results = numbers.map_batches(
            _Worker,
            fn_constructor_args=(opener, parts, folder, threads),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(most, parts))),
            num_cpus=resources.cpus,
            num_gpus=gpus or None,
        )
        for batch in results.iter_batches(batch_size=None, prefetch_batches=0):
            done += len(np.asarray(batch["id"]))
            on_part(done, parts)
    ray.get(alone(_finish).remote(*where))


def _users_error(error: BaseException | None) -> UserError | None:
    """The `UserError` that a worker raised, somewhere among the causes of Ray's own error."""
    for _ in range(8):
        if error is None:
            return None
        if isinstance(error, UserError):
            return UserError(str(getattr(error, "cause", None) or error))
        error = getattr(error, "cause", None) or error.__cause__
    return None
