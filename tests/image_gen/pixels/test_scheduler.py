"""EDM's noise levels along a flow: where steps lie, how exact they are, files, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rcg.core.errors import UserError
from rcg.image_gen.pixels.scheduler import KarrasFlowScheduler

SPREAD = 0.4


def ends(steps: int, **changes: Any) -> torch.Tensor:
    """Where numbers drawn from N(0, 1) end whose data is N(0, SPREAD), float64 [5]."""
    scheduler = KarrasFlowScheduler(**changes)
    scheduler.set_timesteps(steps)
    x = start = torch.linspace(-2, 2, 5, dtype=torch.float64)
    for i, timestep in enumerate(scheduler.timesteps):
        noise = float(scheduler.sigmas[i])
        clean = (1 - noise) * SPREAD**2 / ((1 - noise) ** 2 * SPREAD**2 + noise**2) * x
        x = scheduler.step((x - clean) / noise, timestep, x, return_dict=False)[0]
    return (x - SPREAD * start).abs()


def test_levels_are_edms() -> None:
    scheduler = KarrasFlowScheduler(max_ratio=80.0, min_ratio=0.02, rho=5.0)
    scheduler.set_timesteps(12)
    sigmas = scheduler.sigmas.double()
    assert (sigmas[0], sigmas[-1]) == (1, 0)
    ratios = (sigmas / (1 - sigmas))[1:-1]
    expected = [(80**0.2 + i / 10 * (0.02**0.2 - 80**0.2)) ** 5 for i in range(11)]
    assert ratios.tolist() == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(scheduler.timesteps, 1000 * scheduler.sigmas[:-1])


def test_errors_fall_with_the_square_of_the_steps() -> None:
    few, more, many = (float(ends(steps).max()) / SPREAD for steps in (20, 40, 80))
    assert few < 0.08
    assert more < few / 3
    assert many < more / 3
    assert torch.allclose(ends(1), torch.linspace(-2, 2, 5, dtype=torch.float64).abs() * SPREAD)  # the mean, which is 0


def test_few_steps_are_spread_evenly() -> None:
    errors = [float(ends(steps).max()) / (2 * SPREAD) for steps in range(1, 9)]  # 1: all is the mean
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.5
    assert errors[4] < 0.25
    scheduler = KarrasFlowScheduler()
    scheduler.set_timesteps(4)
    assert scheduler.sigmas.tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    scheduler.set_timesteps(1)
    assert scheduler.sigmas.tolist() == [1, 0]


def test_a_saved_one_is_the_same_and_a_run_leaves_no_trace(tmp_path: Path) -> None:
    scheduler = KarrasFlowScheduler(max_ratio=40.0, rho=7.0)
    scheduler.save_pretrained(tmp_path)
    loaded = KarrasFlowScheduler.from_pretrained(tmp_path)
    assert torch.equal(loaded.sigmas, scheduler.sigmas)
    x, velocity = torch.randn(3), torch.randn(3)
    first = scheduler.step(velocity, 0, x).prev_sample
    scheduler.step(velocity, 0, first)
    scheduler.set_timesteps(20)
    assert torch.equal(scheduler.step(velocity, 0, x).prev_sample, first)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rho": 0.0}, "rho is 0.0"),
        ({"max_ratio": float("inf")}, "max_ratio is inf"),
        ({"min_ratio": 100.0}, "must be below max_ratio"),
        ({"min_ratio": 80.0}, "must be below max_ratio"),
    ],
)
def test_numbers_that_cannot_be(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        KarrasFlowScheduler(**arguments)
