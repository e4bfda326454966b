"""A search as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rcg.eval.reports import markdown_table
from rcg.tune.journal import Record
from rcg.tune.judge import difference_error, standard_error

SHOWN = 10


def search_table(record: Record, tuned: Callable[[Mapping[str, Any]], list[str]]) -> str:
    """The best trials and the model's own settings, on the search's common seed, with 95 % intervals by the jackknife."""
    trials = record["trials"]
    sign = -1 if record["more_is_better"] else 1
    order = sorted(range(len(trials)), key=lambda i: (sign * trials[i]["value"], i))
    rows = [["trial", "settings", record["metric"], "from the model's own", "seconds"]]
    for i in [i for place, i in enumerate(order) if place < SHOWN or i == 0]:
        trial, own = trials[i], trials[0]
        difference = trial["value"] - own["value"]
        error = 1.96 * difference_error(trial["groups"], own["groups"])
        rows.append(
            [
                f"{i}" if i else "0 (own)",
                ", ".join(tuned(trial["settings"])),
                f"{trial['value']:.4g} ± {1.96 * standard_error(trial['groups']):.2g}",
                "" if i == 0 else f"{difference:+.3g} ± {error:.2g}",
                f"{trial['seconds']:.3g}",
            ]
        )
    return markdown_table(rows, numbers=False)


def final_table(record: Record, tuned: Callable[[Mapping[str, Any]], list[str]]) -> str:
    """The finalists on fresh seeds: mean ± deviation, and the difference from the model's own settings."""
    rows = [["trial", "settings", f"{record['metric']}, fresh seeds", "from the model's own", "interval", ""]]
    for found in record["comparison"]:
        own = found["trial"] == 0
        low, high = found["interval"]
        mark = "chosen" if found["settings"] == record["winner"] else "better" if found["better"] else ""
        rows.append(
            [
                "0 (own)" if own else str(found["trial"]),
                ", ".join(tuned(found["settings"])),
                f"{found['mean']:.4g} ± {found['deviation']:.2g}",
                "" if own else f"{found['difference']:+.3g}",
                "" if own else f"{low:+.3g} to {high:+.3g}",
                mark,
            ]
        )
    return markdown_table(rows, numbers=False)
