"""Holding samples out: always the same ones, and never too many."""

from __future__ import annotations

import numpy as np

from rcg.training.subset import hold_out


def test_the_two_parts_are_the_whole() -> None:
    kept, held = hold_out(200, 15)
    assert (len(kept), len(held)) == (185, 15)
    assert sorted([*kept, *held]) == list(range(200))
    assert np.array_equal(hold_out(200, 15)[1], held)
    assert not np.array_equal(held, np.arange(15))


def test_at_most_a_tenth_unless_said_otherwise() -> None:
    assert len(hold_out(200, 512)[1]) == 20
    assert len(hold_out(9, 512)[1]) == 0
    assert len(hold_out(200, 150, most=1.0)[1]) == 150
