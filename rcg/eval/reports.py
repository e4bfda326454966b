"""Writing an evaluation down (`metrics.json`) and printing several side by side."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rcg import __version__
from rcg.core.errors import UserError
from rcg.core.files import write_json
from rcg.core.schema import problem, read_json
from rcg.eval.metrics import Scores

FORMAT = 1
PACKAGES = ("torch", "torchvision", "torch-fidelity", "timm", "numpy", "Pillow")


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    found = {"rcg": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def report(
    scores: Scores,
    *,
    extractor: str,
    weights_hash: str,
    counts: Mapping[str, int | None],
    sources: Mapping[str, str | None],
    command: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The contents of a `metrics.json`.

    Args:
        scores: figures, settings, what is unavailable and notes.
        extractor, weights_hash: what made the features.
        counts: images on each side; None where a statistics file does not say.
        sources: what the two sides are, in words or paths.
        command: the words of the command that made it, if one did.
        extra: further JSON-able entries.
    """
    return {
        "format": FORMAT,
        "metrics": dict(scores.metrics),
        "unavailable": dict(scores.unavailable),
        "notes": list(scores.notes),
        "counts": dict(counts),
        "settings": dict(scores.settings),
        "extractor": {"name": extractor, "weights": weights_hash},
        "sources": dict(sources),
        "command": list(command),
        "versions": versions(),
        **(extra or {}),
    }


def write_report(path: Path, value: Mapping[str, Any]) -> None:
    """Write a report atomically; NaN is refused (a figure that does not exist stands under `unavailable`)."""
    write_json(path, value)


def read_report(path: Path) -> dict[str, Any]:
    """Read a `metrics.json`.

    Raises:
        UserError: it is missing or is no report.
    """
    if not path.exists():
        raise UserError(f"There is no report {path}; rcg-eval --out writes one.")
    report: dict[str, Any] = read_json(path, way_out="give a report that rcg-eval --out wrote")
    if found := problem(report.get("metrics"), dict[str, float], "metrics"):
        raise UserError(f"{path} is not a report of rcg-eval: {found}.")
    return report


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
    return str(value)


def format_table(reports: Mapping[str, Mapping[str, Any]], metrics: Sequence[str] | None = None) -> str:
    """A Markdown table: a row for each report (by its name), a column for each metric, and the number of samples.

    Args:
        reports: name → contents of a `metrics.json`.
        metrics: columns, in order; by default every metric of any report except spreads (`kid_std` and the like).
    """
    if metrics is None:
        found = dict.fromkeys(name for r in reports.values() for name in r["metrics"])
        metrics = [name for name in found if not name.partition("-")[0].endswith("_std")]
    head = ["", *metrics, "samples"]
    rows = [
        [name, *(_cell(r["metrics"].get(m)) for m in metrics), _cell(r.get("counts", {}).get("generated"))]
        for name, r in reports.items()
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])
