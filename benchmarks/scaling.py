"""How much two processes compute in the time of one: caching, and training an RDM from a cache. For two cores at rest.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json
    python benchmarks/scaling.py --images 64 --size 32 --steps 4 --batch-size 64 --width 64 --repeats 1   # a rehearsal

Each process has a core of its own and computes with one thread: without that, one process would decode images on the core that
is to be the second one's. One and two processes take turns, `--repeats` times; the ratio is that of the medians.
What is timed begins when all processes have loaded everything and warmed up, and ends when the last one is done, so that
starting Python does not count. Both works are shared out, not doubled: two processes cache the same images and train with
the same batches as one. Two processes that do the whole work each, apart from each other, tell what the machine itself loses
when both cores compute: what is shared out cannot gain more.

- *cache*: representations of two views of each image (`shapes`) by a ResNet-18, as `rcg-cache` does it.
- *RDM*: steps of `rcg-train-rdm` (DDP over gloo), counted after the first two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import cpu_name

WARM_STEPS = 2


def wait_for_all() -> None:
    """Until every process has come this far."""
    meeting = Path(os.environ["MEETING"])
    (meeting / f"ready-{os.environ['CORE']}").touch()
    while len(list(meeting.glob("ready-*"))) < int(os.environ["LOCAL_WORLD_SIZE"]):
        time.sleep(0.002)


def cache_worker(folder: Path, rank: int, world: int, sizes: dict[str, int]) -> dict[str, float]:
    """Cache this process's share; when it began and ended."""
    import torch

    from rcg.data.build import CacheField, build_cache
    from rcg.data.sources import open_source
    from rcg.encoders.ssl_encoder import SSLEncoder

    torch.manual_seed(0)
    encoder = SSLEncoder(
        "resnet18", image_size=sizes["size"], pool="avg", head_layers=2, head_hidden_dim=256, head_dim=64
    ).eval()
    source = open_source(f"shapes:n={sizes['images']},size={sizes['size']}")
    field = {"representations": CacheField(encoder, encoder)}
    shard = max(1, sizes["images"] // 16)
    warm = open_source(f"shapes:n=32,size={sizes['size']}")
    build_cache(warm, folder / f"warm-{rank}", field, sizes["size"], rank=0, world=1, progress=False)
    wait_for_all()
    begun = time.time()
    build_cache(
        source,
        folder / "cache",
        field,
        sizes["size"],
        views=2,
        shard_size=shard,
        rank=rank,
        world=world,
        progress=False,
    )
    return {"begun": begun, "ended": time.time()}


def rdm_worker(folder: Path, rank: int, world: int, sizes: dict[str, int]) -> dict[str, float]:
    """Train with the other processes; when counting began and ended."""
    import numpy as np
    import torch

    from rcg.rdm.ddpm.objective import DDPMObjective
    from rcg.rdm.representation_mlp import RepresentationMLP
    from rcg.rdm.train import RDMStage
    from rcg.training.config import TrainingConfig
    from rcg.training.loop import train

    class Vectors:
        """Representations at random."""

        fingerprint = "vectors"
        rows = np.random.default_rng(0).standard_normal((20_000, 256)).astype(np.float32)

        def __len__(self) -> int:
            return len(self.rows)

        def batch(self, indices: Any, seeds: Any) -> dict[str, torch.Tensor]:
            """Rows."""
            return {"representations": torch.from_numpy(self.rows[indices])}

    torch.manual_seed(0)
    stage = RDMStage(DDPMObjective(RepresentationMLP(256, sizes["width"], 8)), Vectors(), eval_samples=4)
    times: list[float] = []

    def watch(step: int) -> bool:
        if step == WARM_STEPS:
            wait_for_all()
        times.append(time.time())
        return step == sizes["steps"] + WARM_STEPS

    config = TrainingConfig(
        folder / "run", steps=10**6, batch_size=sizes["batch_size"], micro_batch_size=512, lr=1e-4, device="cpu",
        precision="fp32", save_every=10**6, eval_every=10**6, preview_every=10**6,
    )  # fmt: skip
    train(stage, config, watch=watch)
    return {"begun": times[WARM_STEPS - 1], "ended": times[WARM_STEPS - 1 + sizes["steps"]]}


WORKERS = {"cache": cache_worker, "rdm": rdm_worker}


def end_together(processes: Sequence[subprocess.Popen[Any]]) -> int | None:
    """Wait for processes; the first that fails, if any: the others, which would wait for it, are then ended."""
    try:
        while not any(codes := [process.poll() for process in processes]) and None in codes:
            time.sleep(0.1)
        return next((i for i, code in enumerate(codes) if code), None)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds(work: str, arm: str, sizes: dict[str, int]) -> float:
    """Let processes do a work; from when it began to when the last one ended.

    Args:
        work: which.
        arm: "1" process; "2" that share it; "apart": two that do all of it each and know nothing of each other.
        sizes: of the work.
    """
    count = 1 if arm == "1" else 2
    world = 1 if arm == "apart" else count
    ports = []
    for _ in range(count):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "WORLD_SIZE": str(world),
                                    "LOCAL_WORLD_SIZE": str(count), "MEETING": folder, "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
        processes = []
        for core in range(count):
            own, rank = (Path(folder) / str(core), 0) if arm == "apart" else (Path(folder), core)
            own.mkdir(exist_ok=True)
            port = ports[core if arm == "apart" else 0]
            words = [sys.executable, __file__, "--worker", work, "--folder", str(own), "--sizes", json.dumps(sizes)]
            place = {"CORE": str(core), "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
            with Path(folder, f"out-{core}").open("w") as out, Path(folder, f"errors-{core}").open("w") as errors:
                processes.append(subprocess.Popen(words, env=environment | place, stdout=out, stderr=errors))
        if (failed := end_together(processes)) is not None:
            raise SystemExit(Path(folder, f"errors-{failed}").read_text()[-2000:] or f"process {failed} was killed")
        spans = [json.loads(Path(folder, f"out-{core}").read_text().splitlines()[-1]) for core in range(count)]
        return float(max(s["ended"] for s in spans) - min(s["begun"] for s in spans))


def main() -> None:
    """Take turns, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--works", nargs="+", choices=list(WORKERS), default=list(WORKERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=2048, help="to cache")
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--steps", type=int, default=8, help="of the RDM's training")
    parser.add_argument("--batch-size", type=int, default=4096, help="of the RDM's training, over all processes")
    parser.add_argument("--width", type=int, default=768, help="of the RDM")
    parser.add_argument("--worker", choices=list(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["CORE"])]})
        print("\n" + json.dumps(WORKERS[args.worker](args.folder, rank, world, args.sizes)))
        return
    sizes = {k: getattr(args, k) for k in ("images", "size", "steps", "batch_size", "width")}
    result: dict[str, Any] = {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(),
                              "sizes": sizes, "repeats": args.repeats, "load_before": os.getloadavg()[0], "works": {}}  # fmt: skip
    for work in args.works:
        found: dict[str, list[float]] = {"1": [], "2": [], "apart": []}
        for _ in range(args.repeats):
            for arm, times in found.items():
                times.append(seconds(work, arm, sizes))
        alone, together, apart = (statistics.median(times) for times in found.values())
        ratio, limit = alone / together, 2 * alone / apart
        result["works"][work] = {"seconds": found, "ratio": ratio, "limit": limit}
        print(
            f"{work}: 2 processes compute {ratio:.2f} times as much as 1 in the same time; two that know nothing of each other "
            f"{limit:.2f} times",
            flush=True,
        )
    if args.out is not None:
        from rcg.core.files import write_json

        write_json(args.out, result)


if __name__ == "__main__":
    main()
