"""Step counts of diffusers schedulers: what would silently be a wrong schedule is refused."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest

from rcg.core.errors import UserError
from rcg.core.steps import set_steps


@pytest.mark.parametrize(
    ("scheduler", "steps", "says"),
    [
        (diffusers.DDIMScheduler(), 0, "must lie between 1 and 1000"),
        (diffusers.DDIMScheduler(), 300, "cannot make 300 steps, because they do not divide 1000; use 250 or 500"),
        (diffusers.DDIMScheduler(), 2, "would begin at step 500 of 1000, where noise is not pure"),
        (diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True), 300, "timesteps twice; use fewer steps"),
    ],
)
def test_refusals(scheduler: Any, steps: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        set_steps(scheduler, steps)


def test_an_error_without_words_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError

    scheduler = diffusers.DPMSolverMultistepScheduler()
    monkeypatch.setattr(scheduler, "set_timesteps", refuse)
    with pytest.raises(UserError, match=r"cannot make 20 steps \(NotImplementedError\); choose"):
        set_steps(scheduler, 20)


def test_steps_that_can_be_made() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)
    set_steps(scheduler, 20)
    assert len(scheduler.timesteps) == 20
    set_steps(scheduler, 300, distinct=False)
    assert len(scheduler.timesteps) == 300
