"""Collect the figures of benchmarks/stablerep.sh: `python benchmarks/stablerep_table.py OUT` prints two tables and writes
benchmarks/results/stablerep.json (`--out FILE`: another file)."""

from __future__ import annotations

import argparse
import math
import re
import statistics
from pathlib import Path
from typing import Any

from rcg.core.files import write_json
from rcg.eval.reports import format_table, read_report

NAME = re.compile(r"(simclr|stablerep)-(.+)-m(\d+)-s(\d+)")
FIGURES = ("linear", "knn")


def summary(values: list[float]) -> dict[str, float]:
    """Mean and, of two or more, the standard deviation of the sample."""
    return {"mean": statistics.fmean(values), **({"sd": statistics.stdev(values)} if len(values) > 1 else {})}


def compared(folder: Path) -> list[dict[str, Any]]:
    """A row for each method, data and m, over its seeds."""
    rows: dict[tuple[bool, str, str, int], dict[int, dict[str, float]]] = {}
    for file in folder.glob("*.json"):
        if match := NAME.fullmatch(file.stem):
            method, data, m, seed = match.groups()
            rows.setdefault((data != "real", data, method, int(m)), {})[int(seed)] = read_report(file)["metrics"]
    return [
        {
            "method": method,
            "data": data if not synthetic else f"synthetic, guidance {data}",
            "m": m,
            "seeds": sorted(seeds),
            **{name: summary([seeds[s][name] for s in sorted(seeds)]) for name in FIGURES},
            "by_seed": {str(s): seeds[s] for s in sorted(seeds)},
        }
        for (synthetic, data, method, m), seeds in sorted(rows.items())
    ]


def percent(figure: dict[str, float]) -> str:
    """`61.2 ± 0.4`, or without deviation."""
    text = f"{100 * figure['mean']:.1f}"
    return text + (f" ± {100 * figure['sd']:.1f}" if not math.isnan(figure.get("sd", math.nan)) else "")


def main() -> None:
    """Print the tables; write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/stablerep.json")
    given = parser.parse_args()
    rows = compared(given.folder / "probes")
    print("| method | images | m | linear probe, % | k-NN, % | seeds |\n|---|---|--:|--:|--:|--:|")
    for row in rows:
        cells = [row["method"], row["data"], row["m"], *(percent(row[n]) for n in FIGURES), len(row["seeds"])]
        print(f"| {' | '.join(map(str, cells))} |")
    reports = {p.stem.removeprefix("metrics-"): read_report(p) for p in sorted(given.folder.glob("metrics-*.json"))}
    encoders = {p.stem: read_report(p)["metrics"] for p in sorted((given.folder / "probes").glob("encoder-*.json"))}
    print(f"\n{format_table(reports)}\n" if reports else "")
    for name, metrics in encoders.items():
        print(f"{name}: linear probe {100 * metrics['linear']:.1f} %, k-NN {100 * metrics['knn']:.1f} %")
    budget = dict(word.split("=", 1) for word in (given.folder / "budget.txt").read_text().split())
    slim = {n: {k: r[k] for k in ("metrics", "counts", "extractor") if k in r} for n, r in reports.items()}
    versions = next((read_report(p)["versions"] for p in (given.folder / "probes").glob("*.json")), {})
    write_json(
        given.out,
        {"budget": budget, "encoders": rows, "rcg_encoders": encoders, "rcg": slim, "versions": versions},
    )


if __name__ == "__main__":
    main()
