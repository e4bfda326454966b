"""Damaged files and flags by the thousand: what the library makes of them, other than working or saying one sentence.

    python -m benchmarks.fuzz --cases 10000 --out benchmarks/results/fuzz.json

From the repository's root, with the extra `test`. The cases are those of `tests/fuzzing`: hypothesis damages valid files
(bits, lengths, wrong types, huge numbers, archives with hostile members, pickles with code) and gives them, in processes of
their own, to the functions that the commands call. A case is good if it works or raises `UserError`; any other exception, a
sentence that is none, executed code, unpacked files, more than `--seconds` or more than `--memory` MiB above what the process
had before is a finding. The cases are the same in every run; `--first` goes on behind those that were looked at before. With
`--append` the counts are added to those in the file, so that a long run can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.machine import cpu_name

KINDS = ("images", "checkpoints", "caches", "shards", "texts", "flags")
CHUNK = 1000
"""Cases in one process."""


def limit_memory(mib: int) -> None:
    """Let this process have so much more address space than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def work(kind: str, number: int, count: int, mib: int, scratch: str, say: Connection) -> None:
    """Run `count` cases; tell each one's beginning and outcome."""
    os.environ["RCG_CACHE_DIR"] = f"{scratch}/memory"
    import warnings

    import torch
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from tests.fuzzing.targets import judge, targets

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    target = targets()[kind]
    limit_memory(mib)
    done = 0

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.cases)
    def case(files: dict[str, bytes]) -> None:
        nonlocal done
        folder = Path(scratch) / f"{kind}-{number}-{done}" / "case"
        folder.mkdir(parents=True)
        say.send(("begin", str(folder)))
        outcome = judge(target, files, folder)
        say.send(("end", outcome))
        if outcome in (None, "UserError"):
            shutil.rmtree(folder.parent)
        done += 1

    case()
    say.send(("bye", None))


def chunk(
    kind: str, number: int, count: int, args: argparse.Namespace, scratch: Path
) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Run a chunk in a process of its own, which is ended where it takes too long."""
    context = multiprocessing.get_context("spawn")
    hear, say = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(kind, number, count, args.memory, str(scratch), say))
    process.start()
    say.close()
    counts: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    folder, patience = "", 120.0  # it imports torch first
    while True:
        problem = None
        try:
            if not hear.poll(patience):
                problem = f"takes more than {patience:.0f} s"
            else:
                word, value = hear.recv()
        except EOFError:
            process.join()
            problem = f"the process died ({process.exitcode})"
        if problem is None and word == "bye":
            break
        if problem is None and word == "begin":
            folder, patience = value, args.seconds
            continue
        outcome = problem or value
        counts["worked" if outcome is None else "refused" if outcome == "UserError" else "findings"] += 1
        if outcome not in (None, "UserError"):
            findings.append({"kind": kind, "case": Path(folder).parent.name, "what": outcome})
            if args.keep is not None and folder:
                shutil.copytree(Path(folder).parent, args.keep / Path(folder).parent.name, dirs_exist_ok=True)
        if problem is not None:
            break
    process.kill()
    process.join()
    return counts, findings


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--first", type=int, default=0, help="number of the first chunk of each kind")
    parser.add_argument("--seconds", type=float, default=20.0, help="that a case may take")
    parser.add_argument("--memory", type=int, default=3072, help="MiB that a case may take")
    parser.add_argument("--keep", type=Path, help="folder for the cases that are findings")
    parser.add_argument(
        "--mended", type=int, default=0, help="findings of earlier runs that have been mended, to be written down"
    )
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    from rcg import __version__
    from rcg.core.files import write_json
    from tests.fuzzing.targets import targets

    held = json.loads(args.out.read_text()) if args.append and args.out.exists() else {}
    kinds: dict[str, Any] = held.get("kinds", {})
    all_findings: list[dict[str, Any]] = held.get("findings", [])
    shared = Path("/dev/shm")
    for kind in args.kinds:
        total = round(args.cases * targets()[kind].share)
        counts: Counter[str] = Counter(kinds.get(kind, {}))
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as scratch:
            for number, start in enumerate(range(0, total, CHUNK), start=args.first):
                found, findings = chunk(kind, number, min(CHUNK, total - start), args, Path(scratch))
                counts += found
                all_findings += findings
        seconds = kinds.get(kind, {}).get("seconds", 0.0) + time.perf_counter() - begun
        numbers = {name: counts[name] for name in ("worked", "refused", "findings")}
        kinds[kind] = {"cases": sum(numbers.values()), **numbers, "seconds": round(seconds, 1)}
        print(json.dumps({kind: kinds[kind]}), flush=True)
        write_json(args.out, {
            "rcg": __version__,
            "machine": {"cpu": cpu_name(), "python": platform.python_version()},
            "limits": {"seconds": args.seconds, "mib": args.memory},
            "cases": sum(k["cases"] for k in kinds.values()),
            "kinds": kinds,
            "mended": args.mended or held.get("mended", 0),
            "findings": all_findings,
        })  # fmt: skip
    for what, count in Counter(f["what"] for f in all_findings).most_common(40):
        print(f"{count:5d}  {what}")


if __name__ == "__main__":
    main()
