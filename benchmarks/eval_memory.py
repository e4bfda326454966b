"""Peak memory of `rcg-eval` against the number of images, and whether two processes give the number of one.

    python benchmarks/eval_memory.py --data TRAIN --reference TEST --images 5000 20000 50000 \\
        --out benchmarks/results/eval_memory.json

TRAIN and TEST are folders of images of one size. Folders of so many images of TRAIN are made of links, and each is evaluated
by the command in a process of its own: whole, with decoding, statistics and metrics. Memory is peak resident memory (`VmHWM`)
of the process; the features that are kept are bounded by --feature-sample, so that beyond it only the list of files may grow.
The first folder is then evaluated by two processes (torchrun), with another batch size, and the figures are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import cpu_name

from rcg import __version__
from rcg.core.files import write_json
from rcg.data.sources import open_source

MEASURED = """
import json, os, sys, time
from pathlib import Path
from machine import peak_mib
from rcg.scripts.eval import main
start = time.perf_counter()
main(sys.argv[2:])
found = {"mib": peak_mib(), "seconds": time.perf_counter() - start}
Path(f"{sys.argv[1]}.{os.environ.get('RANK', '0')}").write_text(json.dumps(found))
"""


def link(data: Path, place: Path, count: int) -> None:
    """A folder of `count` images of `data`, evenly from its classes."""
    source: Any = open_source(data, min_size=1)
    for i in np.linspace(0, len(source) - 1, count).round().astype(int):
        target = place / source.files[i]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to((source.folder / source.files[i]).resolve())


def evaluate(args: argparse.Namespace, folder: Path, work: Path, batch: int, processes: int = 1) -> dict[str, Any]:
    """One evaluation by the command: figures, and peak memory of each process."""
    script, told, out = work / "measured.py", work / "told", work / "metrics.json"
    script.write_text(MEASURED)
    flags = [
        "--generated", folder, "--reference", args.reference, "--extractor", args.extractor, "--metrics", *args.metrics,
        "--feature-sample", args.feature_sample, "--batch-size", batch, "--device", "cpu", "--out", out,
    ]  # fmt: skip
    if args.weights is not None:
        flags += ["--extractor-weights", args.weights]
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [*start, script, told, *flags]
    subprocess.run(list(map(str, command)), check=True, env=os.environ | {"PYTHONPATH": path})
    measured = [json.loads(Path(f"{told}.{rank}").read_text()) for rank in range(processes)]
    report = json.loads(out.read_text())
    return {
        "images": report["counts"]["generated"],
        "processes": processes,
        "batch_size": batch,
        "mib": [round(m["mib"], 1) for m in measured],
        "seconds": round(max(m["seconds"] for m in measured), 2),
        "metrics": report["metrics"],
    }


def main() -> None:
    """Parse the flags, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 20_000, 50_000])
    parser.add_argument("--extractor", default="encoder:rcg/cifar10")
    parser.add_argument("--weights", type=Path, help="of the extractor")
    parser.add_argument("--metrics", nargs="+", default=["fid", "kid", "prc", "dc"])
    parser.add_argument("--feature-sample", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for count in args.images:
            link(args.data, work / str(count), count)
            found.append(evaluate(args, work / str(count), work, batch=16))
            print(f"{count} images: peak {found[-1]['mib'][0]:.0f} MiB, {found[-1]['seconds']:.0f} s", flush=True)
        whole = found[0]
        for batch in (16, 100):
            parts = evaluate(args, work / str(args.images[0]), work, batch, processes=2)
            apart = {k: abs(parts["metrics"][k] - v) / (abs(v) or 1.0) for k, v in whole["metrics"].items()}
            found.append(parts | {"apart": apart})
            print(
                f"2 processes, batches of {batch}: at most {max(apart.values()):.1e} apart from 1 process", flush=True
            )
    if args.out:
        settings = {"extractor": args.extractor, "feature_sample": args.feature_sample, "metrics": args.metrics}
        machine = f"{cpu_name()}, {platform.machine()}"
        write_json(args.out, {"runs": found, "settings": settings, "rcg": __version__, "machine": machine})


if __name__ == "__main__":
    main()
