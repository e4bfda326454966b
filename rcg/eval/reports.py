"""Writing an evaluation down (`metrics.json`) and printing several side by side."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rcg import __version__
from rcg.core.errors import UserError
from rcg.core.schema import is_number, problem, read_json
from rcg.eval.metrics import Scores
from rcg.eval.references import Origin

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
    extractor: Mapping[str, Any],
    counts: Mapping[str, int | None],
    sources: Mapping[str, str | None],
    sets: Mapping[str, Origin] | None = None,
    command: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The contents of a `metrics.json`.

    Args:
        scores: figures, settings, what is unavailable and notes.
        extractor: what made the features: its `name`, `weights` (a hash), `resize`, `precision`, and how far bf16 moves them.
        counts: images on each side; None where a statistics file does not say.
        sources: what the two sides are, in words or paths.
        sets: how each side was made and measured.
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
        "extractor": dict(extractor),
        "sources": dict(sources),
        "sets": {side: asdict(origin) for side, origin in (sets or {}).items()},
        "command": list(command),
        "versions": versions(),
        **(extra or {}),
    }


def combine(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One report of several that measured the same way, such as of several seeds; a single one stays as it is.

    Args:
        reports: what `report` made.

    Returns:
        The first, with `settings` those that all share (floats to 6 digits), `metrics` the means, `deviations` the standard
        deviations (of the sample, n - 1) and `repeats` each one's figures and sources. A figure that one of them lacks is
        left out.
    """
    first = dict(reports[0])
    if len(reports) == 1:
        return first
    names = [n for n in first["metrics"] if all(n in r["metrics"] for r in reports)]
    columns = {name: [float(r["metrics"][name]) for r in reports] for name in names}
    first["metrics"] = {name: statistics.fmean(values) for name, values in columns.items()}
    first["deviations"] = {name: statistics.stdev(values) for name, values in columns.items()}
    first["settings"] = {
        name: {k: v for k, v in found.items() if all(_alike(r["settings"].get(name, {}).get(k), v) for r in reports)}
        for name, found in first["settings"].items()
    }
    kept = ("metrics", "sources", "pipeline", "sampling", "rdm")
    first["repeats"] = [{k: r[k] for k in kept if k in r} for r in reports]
    first["notes"] = list(dict.fromkeys(note for r in reports for note in r["notes"]))
    return first


def _alike(value: Any, other: Any) -> bool:
    """Whether two settings are equal; floats to 6 digits, as their last ones may hang on what was measured beside them."""
    floats = isinstance(value, float) and isinstance(other, float)
    return bool(value == other) or (floats and math.isclose(value, other, rel_tol=1e-6))


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


def _cell(value: Any, deviation: Any = None) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        text = f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
        return f"{text} ± {deviation:.2g}" if is_number(deviation) else text
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
        [
            name,
            *(_cell(r["metrics"].get(m), r.get("deviations", {}).get(m)) for m in metrics),
            _cell(r.get("counts", {}).get("generated")),
        ]
        for name, r in reports.items()
    ]
    return markdown_table([head, *rows])


def markdown_table(rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """A Markdown table that a terminal shows well, too.

    Args:
        rows: of cells, the head first.
        numbers: all columns but the first stand to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [numbers and i > 0 for i in range(len(widths))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True))
    return "\n".join([line(rows[0]), f"|{rule}|", *map(line, rows[1:])])
