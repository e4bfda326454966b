"""What representations do with their space, against closed forms and naive counts."""

from __future__ import annotations

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.eval.spectrum import dead_dimensions, find_copies, rank_me


def test_rank_me_of_known_singular_values() -> None:
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 6)))[0]
    assert rank_me(orthogonal) == pytest.approx(6)
    assert rank_me(orthogonal[:, :1] @ np.ones((1, 6))) == pytest.approx(1)
    values = np.array([4.0, 2, 1, 1, 0, 0])
    p = values[:4] / 8
    assert rank_me(orthogonal * values) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_dead_dimensions() -> None:
    x = np.random.default_rng(0).normal(size=(200, 10))
    x[:, 3], x[:, 7] = 5.0, x[:, 7] * 1e-3
    assert dead_dimensions(x) == 2
    assert dead_dimensions(np.ones((5, 4))) == 4


def test_copies_are_found_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 16))
    x[700], x[1400], x[3] = 2 * x[10], x[10] + 1e-3 * rng.normal(size=16), x[0] + 0.5 * rng.normal(size=16)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    limit = 0.01 * distance[~np.eye(len(x), dtype=bool)].mean()
    found = find_copies(x)
    for i in range(len(x)):
        earlier = np.flatnonzero(distance[i, :i] <= limit)
        assert found[i] == (earlier[0] if len(earlier) else -1)
    assert list(np.flatnonzero(found >= 0)) == [700, 1400]


def test_collapsed_vectors_are_all_copies() -> None:
    assert (find_copies(np.ones((20, 4)))[1:] == 0).all()


@pytest.mark.parametrize("bad", [np.ones((1, 4)), np.ones(4), np.full((3, 2), np.nan)])
def test_what_are_no_vectors(bad: np.ndarray) -> None:
    for function in (rank_me, dead_dimensions, find_copies):
        with pytest.raises(UserError, match="finite vectors"):
            function(bad)
