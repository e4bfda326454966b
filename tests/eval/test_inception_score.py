"""The Inception Score of a stream against its definition and torch-fidelity's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from rcg.core.errors import UserError
from rcg.eval.inception_score import InceptionScore


def score(logits: np.ndarray, seed: int = 0, size: int = 13) -> tuple[float, float]:
    kept = InceptionScore(len(logits), seed)
    for start in range(0, len(logits), size):
        kept.add(start, torch.from_numpy(logits[start : start + size]))
    return kept.score()


def test_by_hand() -> None:
    logits = np.random.default_rng(0).normal(size=(90, 7)).astype(np.float32) * 2  # fewer than 100: one split
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    q = p.mean(0)
    expected = np.exp(np.mean([np.sum(row * (np.log(row) - np.log(q))) for row in p]))
    assert score(logits) == pytest.approx((expected, 0.0), rel=1e-9)
    sure = np.eye(10, dtype=np.float32).repeat(200, 0) * 100  # certain and even: near the number of classes
    assert score(sure, seed=1)[0] == pytest.approx(10, rel=0.05)


def test_is_torch_fidelitys_in_any_portions_and_processes() -> None:
    logits = np.random.default_rng(1).normal(size=(213, 7)).astype(np.float32) * 2
    theirs = isc_features_to_metric(torch.from_numpy(logits), rng_seed=5)
    expected = (theirs["inception_score_mean"], theirs["inception_score_std"])
    assert score(logits, 5, 1) == pytest.approx(expected, rel=1e-9)
    assert score(logits, 5, 100) == pytest.approx(expected, rel=1e-9)
    parts = [InceptionScore(213, 5) for _ in range(2)]
    parts[0].add(0, torch.from_numpy(logits[:90]))
    parts[1].add(90, torch.from_numpy(logits[90:]))
    parts[0].merge(parts[1])
    assert parts[0].score() == pytest.approx(expected, rel=1e-9)


def test_one_image_has_none() -> None:
    with pytest.raises(UserError, match="at least 2"):
        score(np.zeros((1, 3), np.float32))


def test_seeds_of_64_bits() -> None:
    logits = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
    assert score(logits, 2**40 + 3) == score(logits, 3)
