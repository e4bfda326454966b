"""Steps along a flow end at the data."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers
import pytest
import torch

from rcg.core.flow import FlowSolver, flow_scheduler

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


@pytest.mark.parametrize(
    "scheduler",
    [
        flow_scheduler(),
        flow_scheduler(3.0),
        diffusers.UniPCMultistepScheduler(**FLOW),
        diffusers.FlowMatchEulerDiscreteScheduler(),
        diffusers.FlowMatchHeunDiscreteScheduler(),
    ],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_flow_that_is_known_exactly_ends_at_the_data(scheduler: Any, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        solver = FlowSolver(scheduler, steps, torch.device("cpu"))
    data, x = torch.tensor([[1.0, 2.0, 3.0]]), torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
    ended = 0
    for i in range(len(solver)):
        x = solver.step(i, (x - data) / solver.noise_levels[i], x)
        ended += solver.ended_step()
    torch.testing.assert_close(x, data)
    assert ended == steps
