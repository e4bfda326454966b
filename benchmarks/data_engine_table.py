"""Collect the figures of benchmarks/data_engine.sh: `python benchmarks/data_engine_table.py OUT [NAME]`.

Prints a table and writes `OUT/table.json`; with a NAME also `benchmarks/results/NAME.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rcg.core.files import write_json


def main() -> None:
    """See the module."""
    out = Path(sys.argv[1])
    rows: list[dict[str, Any]] = []
    studies: dict[str, Any] = {}
    for path in sorted(out.glob("*-*.json"), key=lambda p: (int(p.stem.partition("-")[0]), p.stem)):
        base, _, method = path.stem.partition("-")
        report = json.loads(path.read_text())
        kept = ("settings", "class_coverage", "membership", "extractor", "counts", "versions")
        studies[path.stem] = {k: report[k] for k in kept if k in report}
        for row in report["summary"]:
            rows.append(
                {"base": f"{base} %", "method": method, **{k: row[k] for k in row if k not in ("share", "shots")}}
            )
    report = {"rows": rows, "studies": studies}
    write_json(out / "table.json", report)
    if len(sys.argv) > 2:
        write_json(Path(__file__).parent / f"results/{sys.argv[2]}.json", report)
    print("| real images | method | trained on | generated | accuracy % | seeds |\n|---|---|---|--:|--:|--:|")
    for row in rows:
        times = "" if row["times"] is None else f" {row['times']:g}×"
        spread = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.2f}"
        figures = f"{row['generated']} | {100 * row['accuracy']:.2f}{spread} | {row['seeds']}"
        print(f"| {row['base']} | {row['method']} | {row['set']}{times} | {figures} |")
    print("\n| real images | method | coverage by class | membership AUC | found at 1 % |\n|---|---|--:|--:|--:|")
    for name, study in studies.items():
        if "membership" in study:
            base, _, method = name.partition("-")
            found, covered = study["membership"], study["class_coverage"]["share"]
            told = f"{found['auc']:.3f} ± {found['auc_error']:.3f} | {found['tpr_at_1_percent']:.3f}"
            print(f"| {base} % | {method} | {covered:.3f} | {told} |")


if __name__ == "__main__":
    main()
