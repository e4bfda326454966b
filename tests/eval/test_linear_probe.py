"""The linear probe: what it can tell apart, and what it may not look at."""

from __future__ import annotations

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.eval.linear_probe import PENALTIES, linear_probe


def blobs(count: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(3, 12))
    labels = rng.integers(0, 3, count)
    return (centres[labels] + noise * rng.normal(size=(count, 12))).astype(np.float32), labels


def test_separable_classes_are_told_apart_at_any_scale() -> None:
    x, y = blobs(200, 0.05, 0)
    a, b = blobs(100, 0.05, 1)
    found = linear_probe(1000 * x + 5, y, 1000 * a + 5, b)
    assert found.accuracy == 1.0
    assert set(found.validation) == set(PENALTIES)
    assert found.penalty == max(PENALTIES)  # of equally good ones the strongest


def test_the_penalty_is_chosen_without_the_test_part() -> None:
    x, y = blobs(60, 1.5, 0)
    noise = np.random.default_rng(1).normal(size=(60, 300)).astype(np.float32)
    x = np.hstack([x, noise])
    first = linear_probe(x[:40], y[:40], x[40:], y[40:], seed=3)
    other = linear_probe(x[:40], y[:40], x[40:], (y[40:] + 1) % 3, seed=3)
    assert (first.penalty, first.validation) == (other.penalty, other.validation)
    assert first.validation[first.penalty] == max(first.validation.values())


def test_shuffled_labels_are_chance() -> None:
    x, _ = blobs(300, 1.0, 0)
    y = np.random.default_rng(5).integers(0, 3, 300)
    assert 0.15 < linear_probe(x[:200], y[:200], x[200:], y[200:]).accuracy < 0.55


def test_what_cannot_be_probed() -> None:
    x, y = blobs(30, 0.1, 0)
    with pytest.raises(UserError, match="N labels"):
        linear_probe(x, y[:20], x, y)
    with pytest.raises(UserError, match="2 classes"):
        linear_probe(x, np.zeros(30, int), x, y)
    with pytest.raises(UserError, match="test sample"):
        linear_probe(x, y, x[:0], y[:0])
