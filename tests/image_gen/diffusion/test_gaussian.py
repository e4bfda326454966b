"""The process against its definition, number by number, and against diffusers where that computes the same."""

from __future__ import annotations

import math
from typing import get_args

import diffusers
import pytest
import torch

from rcg.core.errors import UserError
from rcg.image_gen.diffusion.gaussian import GaussianDiffusion, betas_of, spaced, split_output
from rcg.image_gen.diffusion.generator import default_scheduler
from rcg.image_gen.prediction import PredictionType


@pytest.mark.parametrize(
    "options", [{}, {"beta_schedule": "scaled_linear"}, {"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": [0.1, 0.2, 0.3]}]
)  # fmt: skip
def test_betas_are_those_of_the_scheduler(options: dict[str, object]) -> None:
    scheduler = diffusers.DDPMScheduler(**options)
    betas = betas_of(scheduler)
    assert betas.dtype == torch.float64
    assert torch.allclose(betas.float(), scheduler.betas, rtol=1e-5)
    assert len(GaussianDiffusion.of(scheduler)) == len(scheduler.betas)


def test_tables_by_their_definitions() -> None:
    betas, steps = betas_of(default_scheduler()).tolist(), [0, 3, 500, 999]
    process = GaussianDiffusion(betas_of(default_scheduler()), steps)
    before = 1.0
    for k, t in enumerate(steps):
        alpha = math.prod(1 - beta for beta in betas[: t + 1])
        beta = 1 - alpha / before
        assert process.signal[k].item() == pytest.approx(math.sqrt(alpha), rel=1e-6)
        assert process.sigma[k].item() == pytest.approx(math.sqrt(1 - alpha), rel=1e-6)
        assert process.most_log_variance[k].item() == pytest.approx(math.log(beta), rel=1e-5)
        if k:
            assert process.least_log_variance[k].item() == pytest.approx(
                math.log(beta * (1 - before) / (1 - alpha)), rel=1e-5
            )
        before = alpha
    assert process.least_log_variance[0] == process.least_log_variance[1] == process.fixed_log_variance[0]
    assert process.times == steps
    assert not process.state_dict()


@pytest.mark.parametrize("prediction_type", get_args(PredictionType))
@pytest.mark.parametrize("step", [0, 1, 400, 999])
def test_a_step_is_diffusers_own(step: int, prediction_type: PredictionType) -> None:
    options = {"clip_sample": False, "variance_type": "fixed_large", "prediction_type": prediction_type}
    scheduler = diffusers.DDPMScheduler(**options)
    process = GaussianDiffusion.of(scheduler)
    x0, noise, steps = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.full((2,), step)
    noisy = process.add_noise(x0, noise, steps)
    assert torch.allclose(noisy, scheduler.add_noise(x0, noise, steps), atol=1e-5)
    target = process.target(x0, noise, steps)
    theirs = noise if prediction_type == "epsilon" else scheduler.get_velocity(x0, noise, steps)
    assert torch.allclose(target, theirs, atol=1e-5)
    assert torch.allclose(process.clean(noisy, target, steps), x0, atol=1e-2)
    assert torch.allclose(process.prediction(noisy, x0, steps), target, atol=1e-2)
    predicted = torch.randn(2, 3, 4, 4)
    generator = torch.Generator().manual_seed(0)
    theirs = scheduler.step(predicted, step, noisy, generator=generator).prev_sample
    mean = process.mean(process.clean(noisy, predicted, steps), noisy, steps)
    added = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) if step else 0.0
    ours = mean + torch.exp(0.5 * process.log_variance(None, steps, noisy)) * added
    assert torch.allclose(ours, theirs, atol=2e-4 * float(theirs.abs().max()))


def test_the_variance_lies_where_the_model_chooses_it() -> None:
    process = GaussianDiffusion.of(default_scheduler())
    like, steps = torch.zeros(2, 3, 2, 2), torch.tensor([0, 700])
    ends = [process.log_variance(torch.full_like(like, c), steps, like) for c in (-1.0, 0.0, 1.0)]
    assert torch.allclose(ends[0][:, 0, 0, 0], process.least_log_variance[steps])
    assert torch.allclose(ends[2][:, 0, 0, 0], process.most_log_variance[steps])
    assert torch.allclose(ends[1], (ends[0] + ends[2]) / 2)


def test_the_bound_is_nought_for_the_true_posterior_and_grows_from_there() -> None:
    process = GaussianDiffusion.of(default_scheduler())
    x0, noise, steps = 0.5 * torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([1, 500, 999])
    noisy = process.add_noise(x0, noise, steps)
    true = process.mean(x0, noisy, steps)
    least = process.log_variance(-torch.ones_like(x0), steps, x0)
    assert process.bound(true, least, x0, noisy, steps).abs().max() < 1e-5
    assert (process.bound(true, least + 1, x0, noisy, steps) > 0.1).all()
    assert (process.bound(true + 0.5 * torch.exp(0.5 * least), least, x0, noisy, steps) > 0.1).all()


def test_the_first_step_sorts_into_bins() -> None:
    process = GaussianDiffusion.of(default_scheduler())
    first, spread = torch.zeros(1, dtype=torch.int64), 2 * math.log(0.3)
    total = 0.0
    for i in range(256):  # all bins together are certain
        x0 = torch.full((1, 1), i / 127.5 - 1)
        bits = process.bound(torch.full((1, 1), 0.1), torch.full((1, 1), spread), x0, x0, first)
        total += 2 ** -bits.item()
    assert total == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("count", [1, 0, 1001])
def test_steps_that_cannot_be(count: int) -> None:
    with pytest.raises(UserError, match=f"is {count}, but exact sampling takes between 2 and 1000"):
        spaced(1000, count)


def test_outputs_are_noise_and_choice() -> None:
    output = torch.arange(8.0).view(1, 8, 1, 1)
    noise, choice = split_output(output, 4)
    assert noise.flatten().tolist() == [0, 1, 2, 3]
    assert choice is not None
    assert choice.flatten().tolist() == [4, 5, 6, 7]
    assert split_output(output, 8)[1] is None
    with pytest.raises(UserError, match="output has 8 channels, but 3"):
        split_output(output, 3)
