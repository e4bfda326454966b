"""Jobs on a Ray cluster, by Ray Data: it starts and stops workers as there is work, and repeats what a dead one was at.

A worker loads the models once and does part after part. Folders and files are seen by all machines under the same names
(a shared file system), as results are written where they belong and not sent around.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from tqdm import tqdm

from rcg.core.errors import UserError, first_line
from rcg.core.parts import Opener, Share

if TYPE_CHECKING:
    import ray

T = TypeVar("T")
Progress = Callable[[int, int], None]
Maker = Callable[[], Callable[[Share], T]]
"""Makes, on a worker, what does parts; can be pickled."""
PACKAGES = ("ray", "pandas", "pyarrow")
"""What Ray Data is made of; ray alone comes without the others."""


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


@dataclass(frozen=True)
class _Refusal:
    """What a part ended with."""

    error: UserError | OSError


class _Worker(Generic[T]):
    """Does parts; a process of its own on some machine of the cluster."""

    def __init__(self, maker: ray.ObjectRef[Maker[T]] | Maker[T], parts: int, folder: str, threads: int) -> None:
        import ray

        made = ray.get(maker) if isinstance(maker, ray.ObjectRef) else maker
        self.work: Callable[[Share], T] = _at_home(made, folder, threads)
        self.parts = parts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = np.empty(len(batch["id"]), dtype=object)
        for i, number in enumerate(batch["id"]):
            made: T | _Refusal
            try:
                made = self.work(Share(int(number), self.parts))
            except (UserError, OSError) as e:  # Ray would repeat it, and wrap it in errors of its own
                made = _Refusal(e)
            found[i] = pickle.dumps(made)
        return {"id": batch["id"], "made": found}


def _at_home(make: Callable[[], T], folder: str, threads: int) -> T:
    """What `make` makes on a worker, with its folder and number of threads."""
    import torch

    if not Path(folder).is_dir():
        raise UserError(
            f"the folder {folder} is not on the machine {os.uname().nodename}; let all machines of the cluster share a file "
            "system, and start the command in a folder of it."
        )
    os.chdir(folder)
    torch.set_num_threads(threads)
    return make()


def _claim(opener: Opener) -> int:
    job = opener()
    job.claim()
    return int(job.parts)


def _finish(opener: Opener) -> None:
    opener().finish()


def _doer(opener: Opener) -> Callable[[Share], None]:
    return opener().do


def check_ray() -> None:
    """Refuse where there is no Ray with Ray Data, or where processes are started by others.

    Raises:
        UserError: that.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"--engine ray needs Ray Data, but {missing[0]} is missing; run: pip install 'ray[data]'.")
    if Share.from_environment().world > 1:
        raise UserError("--engine ray starts its processes itself; start the command once, without torchrun.")


@contextlib.contextmanager
def _cluster(resources: RayResources) -> Iterator[None]:
    """The cluster that Ray finds (`RAY_ADDRESS`, or one on this machine), else one that is started here and then ended.

    A `UserError` of a worker is raised as its own. What no machine of it has room for is warned of: Ray waits for one that has.

    Raises:
        UserError: no cluster answers where one is said to be.
    """
    import ray

    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody unless the user wants it
        try:
            ray.init(log_to_driver=False, configure_logging=True, logging_level="warning")
        except ConnectionError as e:
            raise UserError(
                f"Ray cannot be reached ({first_line(e)}); start the cluster that RAY_ADDRESS names, or unset RAY_ADDRESS to "
                "use this machine alone."
            ) from None
    try:
        _warn_of_waiting(resources)
        yield
    except Exception as e:
        if (own := _users_error(e)) is not None:
            raise own from None
        raise
    finally:
        if started:
            ray.shutdown()


def _gpus(resources: RayResources) -> float:
    import ray

    if resources.gpus is not None:
        return resources.gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def _warn_of_waiting(resources: RayResources) -> None:
    import ray

    taken = {"CPU": resources.cpus, "GPU": _gpus(resources)}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(machine.get(kind, 0) >= count for kind, count in taken.items()) for machine in machines):
        what = " and ".join(f"{count:g} {kind}s" for kind, count in taken.items() if count)
        warnings.warn(
            f"a worker takes {what}, which no machine of the Ray cluster has; unless autoscaling adds one, this waits for ever: "
            "lower --ray-cpus or --ray-gpus then.",
            stacklevel=1,
        )


def _alone(resources: RayResources, make: Callable[[], T]) -> T:
    """What `make` makes on some worker."""
    import ray

    remote = ray.remote(num_cpus=resources.cpus, num_gpus=_gpus(resources), max_retries=3)(_at_home)
    found: T = ray.get(remote.remote(make, str(Path.cwd()), resources.cpus))
    return found


def _each(maker: Maker[T], parts: int, resources: RayResources, on_part: Progress) -> Iterator[T]:
    """What the work that `maker` makes on each worker makes of all parts, in their order."""
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.log_internal_stack_trace_to_stdout = False
    most = resources.workers or parts
    gpus = _gpus(resources)
    # not ray.data.range, which reads in tasks that need a CPU beside the workers'
    numbers = ray.data.from_items([{"id": number} for number in range(parts)], override_num_blocks=parts)
    results = numbers.map_batches(
        _Worker,
        fn_constructor_args=(ray.put(maker), parts, str(Path.cwd()), resources.cpus),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(most, parts))),
        num_cpus=resources.cpus,
        num_gpus=gpus or None,
    )
    early: dict[int, bytes] = {}
    done = following = 0
    for batch in results.iter_batches(batch_size=None, prefetch_batches=0):
        early |= dict(zip(np.asarray(batch["id"]).tolist(), batch["made"], strict=True))
        done += len(batch["id"])
        on_part(done, parts)
        while following in early:
            made = pickle.loads(early.pop(following))  # what our own worker has made
            if isinstance(made, _Refusal):
                raise made.error
            yield made
            following += 1


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
    check_ray()
    resources = resources or RayResources()
    with _cluster(resources):
        parts = _alone(resources, partial(_claim, opener))
        on_part(0, parts)
        if parts:
            for _ in _each(partial(_doer, opener), parts, resources, on_part):
                pass
        _alone(resources, partial(_finish, opener))


@dataclass(frozen=True)
class RayCrew:
    """Workers that measure image sets together; a `rcg.eval.processes.Crew`.

    Attributes:
        resources: of workers.
        parts: into how many a set is cut at most. More than workers, so that none waits long for the last one, and little is
            repeated where one dies.
    """

    resources: RayResources = RayResources()
    parts: int = 64

    @property
    def several(self) -> bool:
        """Sets are shared out."""
        return True

    def device(self, asked: str) -> str:
        """Every worker sees for itself."""
        return asked

    def each(
        self, work: Callable[[Share, Callable[[int], None]], T], pieces: int, images: int | None, label: str | None
    ) -> Iterator[T]:
        """See `rcg.eval.processes.Crew`; in the order of the parts."""
        check_ray()
        parts = max(1, min(pieces, self.parts))
        with tqdm(total=parts, desc=label, unit="part", disable=label is None) as bar, _cluster(self.resources):

            def show(done: int, of: int) -> None:
                bar.update(done - bar.n)

            yield from _each(partial(_quietly, work), parts, self.resources, show)


def _quietly(work: Callable[[Share, Callable[[int], None]], T]) -> Callable[[Share], T]:
    return partial(_call, work)


def _call(work: Callable[[Share, Callable[[int], None]], T], share: Share) -> T:
    return work(share, lambda images: None)


def _users_error(error: BaseException | None) -> UserError | None:
    """The `UserError` that a worker raised, somewhere among the causes of Ray's own error."""
    for _ in range(8):
        if error is None:
            return None
        if isinstance(error, UserError):
            return UserError(str(getattr(error, "cause", None) or error))
        error = getattr(error, "cause", None) or error.__cause__
    return None
