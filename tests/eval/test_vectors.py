"""Representations without images."""

from __future__ import annotations

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.eval.frechet import frechet_distance
from rcg.eval.vectors import evaluate_representations, split_real

REAL = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
SOURCES = {"generated": "rdm", "reference": "cache"}


def test_equal_counts_and_a_floor() -> None:
    sampled = np.random.default_rng(1).normal(size=(150, 6)).astype(np.float32) + 1
    found = evaluate_representations(sampled, REAL, ["fid", "kid", "dc", "isc"], sources=SOURCES, extra={"x": 1})
    reference, other = split_real(REAL, 150, 0)
    assert found["counts"] == {"generated": 100, "reference": 100}
    assert found["metrics"]["rep_fd"] == pytest.approx(frechet_distance(sampled[:100], reference), rel=1e-9)
    assert found["floor"]["rep_fd"] == pytest.approx(frechet_distance(other, reference), rel=1e-9)
    assert found["floor"]["rep_fd"] < found["metrics"]["rep_fd"]
    assert set(found["metrics"]) == {
        "rep_fd", *(f"{name}-representation" for name in ("kid", "kid_std", "density", "coverage")),
    }  # fmt: skip
    assert "isc-representation" in found["unavailable"]
    assert (found["sources"], found["x"]) == (SOURCES, 1)


def test_halves_are_apart() -> None:
    one, other = split_real(REAL, 30, 3)
    assert len(one) == len(other) == 30
    assert not {tuple(row) for row in one} & {tuple(row) for row in other}


def test_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="have 5 numbers and the real ones 6"):
        evaluate_representations(REAL[:, :5], REAL, ["fid"], sources=SOURCES)
    for metric in ("isc", "cmmd", "fld", "copies"):  # no way out is named that rcg-eval --rdm refuses
        with pytest.raises(UserError, match=r"None of the metrics.*choose among fid, fid_infinity, kid") as e:
            evaluate_representations(REAL, REAL, [metric], sources=SOURCES)
        assert "--" not in str(e.value)
    with pytest.raises(UserError, match="at least 2"):
        evaluate_representations(REAL, REAL[:2], ["fid"], sources=SOURCES)


def test_too_few_for_a_floor() -> None:
    rng = np.random.default_rng(0)
    sampled, real = rng.normal(size=(20, 4)), rng.normal(size=(40, 4))
    found = evaluate_representations(sampled, real, ["kid", "vendi"], sources={"generated": "a", "reference": "b"})
    assert found["floor"] == {}
    assert list(found["metrics"]) == ["vendi-representation"]
