"""Collect the figures of benchmarks/generators.sh: `python benchmarks/generators_table.py OUT [NAME]`.

Prints a table and writes `benchmarks/results/NAME.json` (NAME: generators).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rcg.core.files import write_json
from rcg.eval.reports import read_report


def main() -> None:
    """See the module."""
    out, name = Path(sys.argv[1]), (sys.argv[2:] or ["generators"])[0]
    verdicts = json.loads((out / "verdict.json").read_text())
    rows, versions = {}, {}
    for path in sorted(out.glob("metrics-*.json")):
        row, report = path.stem.removeprefix("metrics-"), read_report(path)
        rows[row] = {**report["metrics"], **{k: verdicts.get(row, {}).get(k) for k in ("confident", "evenness")}}
        versions = report.get("versions", {})
    trained = {}
    for log in sorted(out.glob("*/training/log.jsonl")):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        trained[log.parent.parent.name] = {k: v for line in lines for k, v in line.items() if k.startswith("eval/")}
    write_json(
        Path(__file__).parent / f"results/{name}.json", {"rows": rows, "training": trained, "versions": versions}
    )
    columns = sorted({key for row in rows.values() for key in row})
    print("| | " + " | ".join(columns) + " |\n|---" + "|---:" * len(columns) + "|")
    for row, figures in rows.items():
        cells = [f"{v:.3f}" if (v := figures.get(c)) is not None else "" for c in columns]
        print(f"| {row.removeprefix('samples-')} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
