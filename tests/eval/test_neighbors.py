"""Precision, recall, density and coverage against naive ones, and whether they see what they should."""

from __future__ import annotations

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.eval.neighbors import density_coverage, precision_recall


def test_precision_and_recall_by_hand() -> None:
    g = np.random.default_rng(3)
    fake, real = g.normal(size=(40, 3)).astype(np.float32) * 0.5, g.normal(size=(50, 3)).astype(np.float32)

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        radius = [sorted(np.linalg.norm(centres - c, axis=1))[3] for c in centres]  # 0 is the point itself
        inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radius, strict=True)) for p in points]
        return float(np.mean(inside))

    found, _ = precision_recall(fake, real)
    assert found["precision"] == pytest.approx(covered(fake, real))
    assert found["recall"] == pytest.approx(covered(real, fake))
    assert found["precision"] > found["recall"] > 0  # narrow samples: good, but not diverse
    assert found["f_score"] == pytest.approx(
        2 * found["precision"] * found["recall"] / (found["precision"] + found["recall"])
    )


def test_density_and_coverage_are_the_papers() -> None:
    """Against equations 3 and 4 of arXiv 2002.09797, written out."""
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(60, 4)), rng.normal(size=(45, 4)) * 0.8 + 0.3
    inside = np.zeros((60, 45), bool)
    for i in range(60):
        radius = sorted(np.linalg.norm(real[i] - real[j]) for j in range(60) if j != i)[4]
        for j in range(45):
            inside[i, j] = np.linalg.norm(real[i] - fake[j]) < radius
    found, settings = density_coverage(fake.astype(np.float32), real.astype(np.float32))
    assert found == pytest.approx({"density": inside.sum() / (5 * 45), "coverage": inside.any(1).mean()})
    assert settings == {"neighbors": 5}


def test_density_and_coverage_see_what_they_should() -> None:
    rng = np.random.default_rng(0)
    real, same = rng.normal(size=(2, 600, 8)).astype(np.float32)
    alike = density_coverage(same, real)[0]
    assert alike["density"] == pytest.approx(1.0, abs=0.15)
    assert alike["coverage"] > 0.9
    dropped = density_coverage(same[same[:, 0] > 0], real)[0]  # half of the modes are missing
    assert dropped["coverage"] < 0.75
    far = density_coverage(same + 5, real)[0]
    assert far["density"] < 0.05


def test_features_far_from_zero_keep_their_digits() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, 300, 64)) * 0.05
    fake *= 0.95
    near = precision_recall(fake.astype(np.float32), real.astype(np.float32))[0]
    far = precision_recall((fake + 30).astype(np.float32), (real + 30).astype(np.float32))[0]
    assert far == pytest.approx(near, abs=0.01)
    assert 0.1 < near["recall"] < 0.99


def test_a_set_against_itself() -> None:
    x = np.random.default_rng(1).normal(size=(80, 4)).astype(np.float32)
    found = precision_recall(x, x)[0]
    assert (found["precision"], found["recall"]) == (1, 1)
    assert density_coverage(x, x)[0]["coverage"] == 1


def test_too_few() -> None:
    x = np.ones((3, 2), np.float32)
    with pytest.raises(UserError, match="more than 3"):
        precision_recall(x, x)
    with pytest.raises(UserError, match="more than 5"):
        density_coverage(x, x)
