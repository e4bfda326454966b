"""KID and CMMD against hand-written sums and torch-fidelity, the Vendi score against known numbers of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from rcg.core.errors import UserError
from rcg.eval import kernels
from rcg.eval.kernels import clip_mmd, kernel_inception_distance, vendi_score


def two_sets(n: int, m: int, dim: int = 5) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(1)
    return g.normal(size=(n, dim)).astype(np.float32), g.normal(size=(m, dim)).astype(np.float32) + 0.5


def test_kid_by_hand() -> None:
    x, y = two_sets(60, 60)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a.astype(np.float64) @ b / 5 + 1) ** 3)

    n = 60
    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    expected = within - 2 * sum(kernel(a, b) for a in x for b in y) / n**2
    found, settings = kernel_inception_distance(x, y, seed=0)
    assert found["kid"] == pytest.approx(expected, rel=1e-6)  # subsets of all 60: every one is the whole set
    assert found["kid_std"] == pytest.approx(0, abs=1e-9)
    assert settings["subset_size"] == 60


@pytest.mark.parametrize("rows", [1000, 7])
def test_kid_is_torch_fidelitys(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ROWS", rows)
    x, y = two_sets(90, 61)
    theirs = kid_features_to_metric(
        *(torch.from_numpy(s).double() for s in (x, y)), kid_subset_size=61, rng_seed=3, verbose=False
    )
    found, _ = kernel_inception_distance(x, y, seed=3)
    assert found["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert found["kid_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)
    assert found["kid_std"] > 0
    assert kernel_inception_distance(x, y, seed=4)[0]["kid"] != found["kid"]


def test_kid_needs_images() -> None:
    x, y = two_sets(49, 80)
    with pytest.raises(UserError, match="at least 50 images on each side; there are only 49"):
        kernel_inception_distance(x, y, 0)


def test_cmmd_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (s / np.linalg.norm(s, axis=1, keepdims=True) for s in map(np.float64, two_sets(9, 12)))

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([[np.exp(-((p - q) ** 2).sum() / 200) for q in b] for p in a]))

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert clip_mmd(x, y)[0]["cmmd"] == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(kernels, "ROWS", 4)
    assert clip_mmd(x, y)[0]["cmmd"] == pytest.approx(expected, rel=1e-5)
    assert clip_mmd(x, x)[0]["cmmd"] == pytest.approx(0, abs=1e-9)


def test_vendi_counts_different_images() -> None:
    eye = np.eye(6, 8, dtype=np.float32)
    assert vendi_score(eye) == pytest.approx(6)
    assert vendi_score(np.repeat(eye, 5, axis=0) * 3) == pytest.approx(6)  # copies and lengths do not count
    assert vendi_score(np.ones((4, 8), np.float32)) == pytest.approx(1)
    half = np.concatenate([np.repeat(eye[:1], 9, axis=0), eye[1:2]])  # nine of one, one of another
    assert vendi_score(half) == pytest.approx(np.exp(-(0.9 * np.log(0.9) + 0.1 * np.log(0.1))))
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit.astype(np.float64) @ unit.T / 30)
    values = values[values > 1e-12]
    assert vendi_score(x) == pytest.approx(np.exp(-(values * np.log(values)).sum()), rel=1e-5)
    with pytest.raises(UserError, match="not zero"):
        vendi_score(np.zeros((3, 2), np.float32))


def test_seeds_of_64_bits() -> None:
    x, y = two_sets(60, 60)
    assert kernel_inception_distance(x, y, 2**40 + 3) == kernel_inception_distance(x, y, 3)
