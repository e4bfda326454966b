"""Collect the figures of benchmarks/cifar10.sh: `python benchmarks/cifar10_table.py OUT` prints a table and writes cifar10.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rcg.core.files import write_json
from rcg.eval.reports import format_table, read_report


def last_evaluation(log: Path) -> dict[str, float]:
    """The last evaluation line of a training log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return next((line for line in reversed(lines) if any(k.startswith("eval/") for k in line)), {})


def main() -> None:
    """Print the table; write `benchmarks/results/cifar10.json` next to this file."""
    out = Path(sys.argv[1])
    reports = {p.stem.removeprefix("metrics-"): read_report(p) for p in sorted(out.glob("metrics-*.json"))}
    stages = {p.parent.parent.name: last_evaluation(p) for p in sorted(out.glob("*/training/log.jsonl"))}
    slim = {n: {k: r[k] for k in ("metrics", "counts", "extractor") if k in r} for n, r in reports.items()}
    versions = next(iter(reports.values())).get("versions", {}) if reports else {}
    write_json(
        Path(__file__).parent / "results/cifar10.json", {"metrics": slim, "training": stages, "versions": versions}
    )
    print(format_table(reports))
    for name, line in stages.items():
        print(name, json.dumps(line))


if __name__ == "__main__":
    main()
