"""MIND against its definition and against Gaussians whose distance is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rcg.eval.sliced import monge_inception_distance


def test_definition_written_out() -> None:
    """arXiv 2605.06797: 3 D times the mean over directions of the squared distance of sorted projections."""
    g = np.random.default_rng(0)
    x, y = g.normal(size=(40, 6)).astype(np.float32), g.normal(size=(40, 6)).astype(np.float32) * 2 + 1
    directions = torch.randn(1000, 6, generator=torch.Generator().manual_seed(5)).double().numpy()
    total = 0.0
    for u in directions:
        u = u / np.linalg.norm(u)
        total += float(((np.sort(x @ u) - np.sort(y @ u)) ** 2).mean())
    found, settings = monge_inception_distance(x, y, seed=5)
    assert found["mind"] == pytest.approx(18 * total / 1000, rel=1e-5)
    assert settings == {"projections": 1000, "images": 40}


def test_known_distances() -> None:
    x = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32)
    shift = np.zeros(8, np.float32)
    shift[0] = 2
    assert monge_inception_distance(x, x, 0)[0]["mind"] == 0
    # a shift s moves every projection by u·s, and the mean of (u·s)² over the sphere is |s|²/D: 3 D·|s|²/D
    found = [monge_inception_distance(x + shift, x, seed)[0]["mind"] for seed in range(4)]
    assert np.mean(found) == pytest.approx(3 * 4, rel=0.08)


def test_the_larger_set_is_cut() -> None:
    x = np.random.default_rng(2).normal(size=(200, 4)).astype(np.float32)
    found, settings = monge_inception_distance(x, x[:50], 0)
    assert settings["images"] == 50
    assert 0 < found["mind"] < 1
    assert monge_inception_distance(x, x[:50], 1)[0]["mind"] != found["mind"]
