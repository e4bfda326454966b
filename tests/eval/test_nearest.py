"""Nearest neighbours in a stream, against the whole matrix of distances."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from rcg.core.errors import UserError
from rcg.eval.nearest import CHUNK, Nearest, Neighbors


def draw(seed: int, count: int, dim: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(3, 1, (count, dim)).astype(np.float32)


def find(queries: np.ndarray, rows: np.ndarray, k: int, portion: int, start: int = 0) -> Nearest:
    nearest = Nearest(queries, k)
    place = start
    for part in torch.from_numpy(rows).split(portion):
        nearest.add(place, part)
        place += len(part)
    nearest.flush()
    return nearest


def naive(queries: np.ndarray, rows: np.ndarray, k: int) -> Neighbors:
    distances = np.array([[np.sqrt(((q - r) ** 2).sum()) for r in rows.astype(np.float64)] for q in queries])
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return Neighbors(np.take_along_axis(distances, order, axis=1), order)


@pytest.mark.parametrize("k", [1, 4])
def test_a_stream_gives_what_the_whole_matrix_gives(k: int) -> None:
    queries, rows = draw(0, 20), draw(1, CHUNK + 90)
    found, expected = find(queries, rows, k, 33).neighbors(), naive(queries, rows, k)
    np.testing.assert_array_equal(found.numbers, expected.numbers)
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-12)


def test_portions_do_not_matter_and_parts_can_be_merged() -> None:
    queries, rows = draw(0, 20), draw(1, 2 * CHUNK + 90)
    one, other = (find(queries, rows, 3, portion).neighbors() for portion in (7, 5000))
    np.testing.assert_array_equal(one.numbers, other.numbers)
    np.testing.assert_array_equal(one.distances, other.distances)  # to the bit
    first, second = find(queries, rows[:700], 3, 50), find(queries, rows[700:], 3, 50, start=700)
    first.merge(pickle.loads(pickle.dumps(second)))
    np.testing.assert_array_equal(first.neighbors().numbers, one.numbers)
    np.testing.assert_allclose(first.neighbors().distances, one.distances, rtol=1e-12)


def test_of_equally_near_rows_the_first_are_named_wherever_the_stream_is_cut() -> None:
    queries, rows = draw(0, 30), np.tile(draw(1, 60), (20, 1))  # each row twenty times
    whole = find(queries, rows, 5, 100).neighbors()
    assert np.array_equal(whole.numbers % 60, np.repeat(whole.numbers[:, :1] % 60, 5, axis=1))
    assert np.array_equal(np.sort(whole.numbers, axis=1), whole.numbers)
    assert whole.numbers.max() < 5 * 60
    for cut in (64, 384, 640):
        first, second = find(queries, rows[:cut], 5, 50), find(queries, rows[cut:], 5, 50, start=cut)
        first.merge(second)
        np.testing.assert_array_equal(first.neighbors().numbers, whole.numbers)


def test_equal_rows_are_at_distance_zero_and_nearly_equal_ones_keep_their_digits() -> None:
    rows = draw(1, 40, 8) * 1000
    queries = np.stack([rows[7], rows[30] + np.float32(2**-8)])
    found = find(queries, rows, 1, 11).neighbors()
    assert found.numbers[:, 0].tolist() == [7, 30]
    assert found.distances[0, 0] == 0
    assert found.distances[1, 0] == pytest.approx(np.sqrt(8) / 256, rel=0.1)


def test_few_rows_give_few_neighbors_and_none_is_a_mistake() -> None:
    found = find(draw(0, 6), draw(1, 2), 5, 10).neighbors()
    assert found.numbers.shape == (6, 2)
    first, second = found.split(4)
    assert (len(first), len(second)) == (4, 2)
    with pytest.raises(UserError, match="no images"):
        find(draw(0, 6), draw(1, 0), 5, 10).neighbors()
