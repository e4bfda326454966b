"""metrics.json and tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rcg.core.errors import UserError
from rcg.core.files import write_json
from rcg.eval.metrics import Scores
from rcg.eval.references import Origin
from rcg.eval.reports import combine, format_table, read_report, report


def example(fid: float) -> dict[str, object]:
    return report(
        Scores(
            metrics={"fid-768": fid, "kid-768": 0.01234, "kid_std-768": 0.001}, unavailable={"isc-768": "no logits."}
        ),
        extractor={"name": "inception-768", "weights": "abc"},
        counts={"generated": 2000, "reference": None},
        sources={"generated": "a", "reference": "b.npz"},
        sets={"generated": Origin(source="a", size="8×8")},
        command=["rcg-eval", "--generated", "a"],
        extra={"pipeline": {"seed": 3}},
    )


def test_report_is_complete_and_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "metrics.json", example(12.5))
    found = read_report(tmp_path / "deep" / "metrics.json")
    assert found["metrics"]["fid-768"] == 12.5
    assert found["counts"] == {"generated": 2000, "reference": None}
    assert found["sets"]["generated"]["size"] == "8×8"
    assert found["extractor"] == {"name": "inception-768", "weights": "abc"}
    assert found["unavailable"] == {"isc-768": "no logits."}
    assert found["pipeline"] == {"seed": 3}
    assert {"rcg", "python", "torch", "torch-fidelity"} <= set(found["versions"])
    assert found["command"][0] == "rcg-eval"


def test_nan_is_never_written(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", example(1.0))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "m.json", example(float("nan")))
    assert json.loads((tmp_path / "m.json").read_text())["metrics"]["fid-768"] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


def test_table() -> None:
    other = example(3.0)
    other["metrics"] = {"fid-768": 3.0, "isc": 0.5}
    table = format_table({"none": example(12.345), "representation": other})
    assert table.splitlines() == [
        "|                | fid-768 | kid-768 | isc | samples |",
        "|----------------|--------:|--------:|----:|--------:|",
        "| none           |   12.35 |  0.0123 |   – |    2000 |",
        "| representation |    3.00 |       – | 0.5 |    2000 |",
    ]
    assert "kid" not in format_table({"none": example(1.0)}, ["fid-768"])


def test_what_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no report"):
        read_report(tmp_path / "no.json")
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_report(tmp_path / "m.json")
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(UserError, match="metrics is None"):
        read_report(tmp_path / "m.json")


def test_repeats_have_a_mean_and_a_deviation() -> None:
    found = combine([example(x) for x in (10.0, 12.0, 14.0)])
    assert found["metrics"]["fid-768"] == 12.0
    assert found["deviations"]["fid-768"] == 2.0
    assert [r["metrics"]["fid-768"] for r in found["repeats"]] == [10.0, 12.0, 14.0]
    assert "12.00 ± 2" in format_table({"mine": found})
    single = example(10.0)
    assert combine([single]) == single
    lacking = example(8.0)
    lacking["metrics"] = {"fid-768": 8.0}
    assert list(combine([lacking, example(9.0)])["metrics"]) == list(combine([example(9.0), lacking])["metrics"])


def test_what_differs_between_repeats_is_nobodys_setting() -> None:
    one, other = (
        {"metrics": {"ct": 1.0}, "notes": [], "settings": {"ct": {"cells": 2, "deviation": d}}} for d in (1, 2)
    )
    assert combine([one, other])["settings"] == {"ct": {"cells": 2}}


def test_floats_that_differ_in_their_last_digits_are_shared() -> None:
    """The distance of which a near-copy is nearer, of the same images measured beside others."""
    one, other = (
        {"metrics": {"copies": 0.0}, "notes": [], "settings": {"copies": {"threshold": t, "p_value": t / 2}}}
        for t in (0.4, 0.4 * (1 + 1e-7))
    )
    assert combine([one, other])["settings"] == {"copies": {"threshold": 0.4, "p_value": 0.2}}
    other["settings"]["copies"]["p_value"] = 0.5  # type: ignore[index]
    assert combine([one, other])["settings"] == {"copies": {"threshold": 0.4}}
