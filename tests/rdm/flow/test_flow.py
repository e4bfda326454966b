"""The flow: its model's wrapping, its objective, and its sampler against a second one."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from rcg.core.errors import UserError
from rcg.core.flow import flow_scheduler
from rcg.core.rng import Noise
from rcg.rdm.flow.flow_mlp import FlowMLP
from rcg.rdm.flow.generator import FlowGenerator
from rcg.rdm.flow.objective import FlowObjective
from rcg.rdm.protocol import Request
from rcg.rdm.statistics import half_hidden_noise
from tests.rdm.data import modes

DIM = 8


def model(num_classes: int = 0, stirred: bool = True, **changes: object) -> FlowMLP:
    torch.manual_seed(0)
    made = FlowMLP(
        DIM, 24, 2, num_classes, context_dim=6, class_dropout=0.1 if num_classes else 0.0, **changes  # type: ignore[arg-type]
    ).eval()  # fmt: skip
    if stirred:
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
    return made


def naive_euler(rdm: FlowMLP, noise: torch.Tensor, steps: int, shift: float) -> torch.Tensor:
    """dx/dσ in even steps of the unshifted σ, from the inner MLP and the formulas of the papers."""
    x = noise
    levels = [i / steps for i in range(steps, -1, -1)]
    levels = [shift * s / (1 + (shift - 1) * s) for s in levels]
    for now, after in itertools.pairwise(levels):
        # the clean sample, the noise that goes with it on the straight path, and where the two lead
        clean = rdm.mlp(x / (now**2 + (1 - now) ** 2) ** 0.5, 1000 * now).sample
        epsilon = (x - (1 - now) * clean) / now
        x = x + (after - now) * (epsilon - clean)
    return x * rdm.std + rdm.mean


def test_the_sampler_equals_a_naive_one() -> None:
    rdm = model()
    rdm.std.uniform_(0.5, 2)
    rdm.mean.normal_()
    noise = Noise(list(range(5)))
    for steps, shift in ((1, 1.0), (6, 1.0), (8, 2.5)):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        drawn = FlowGenerator(rdm, scheduler).draw(Request(noise, num_inference_steps=steps))
        torch.testing.assert_close(drawn, naive_euler(rdm, noise.normal(0, DIM), steps, shift), rtol=1e-4, atol=1e-4)
    fine = naive_euler(rdm, noise.normal(0, DIM), 500, 1.0)  # and the default solver goes where fine steps lead
    few = FlowGenerator(rdm, flow_scheduler()).draw(Request(noise, num_inference_steps=25))
    assert (few - fine).norm() < 0.03 * fine.norm()


def test_a_new_model_draws_the_mean() -> None:
    rdm = model(stirred=False)
    rdm.mean.fill_(3)
    rdm.std.copy_(torch.arange(1, DIM + 1))
    drawn = FlowGenerator(rdm, flow_scheduler()).draw(Request(Noise(list(range(20))), blocks=False))
    torch.testing.assert_close(drawn, rdm.mean.expand(20, -1), rtol=0, atol=0.02)


def test_data_on_a_line_is_drawn_on_that_line() -> None:
    """Most directions hold nothing but noise: what must go there is nothing, the more steps the less."""
    line = torch.linspace(-1, 1, DIM)

    class Line(FlowMLP):
        """Knows the data to be N(0, 1) along `line` and 0 across it: predicts E[z | x]."""

        def predict(self, sample: torch.Tensor, timestep: object, class_labels: object = None) -> torch.Tensor:
            s = float(timestep) / 1000  # type: ignore[arg-type]
            along = sample @ line / line.dot(line)
            return ((1 - s) / ((1 - s) ** 2 + s**2 / line.dot(line)) * along)[:, None] * line

    for steps in (12, 50):
        drawn = FlowGenerator(Line(DIM, 24, 1).eval(), flow_scheduler()).draw(
            Request(Noise(list(range(300))), num_inference_steps=steps, blocks=False)
        )
        along = drawn @ line / line.dot(line)
        assert (drawn - along[:, None] * line).abs().max() < 1e-4
        assert float(along.std()) == pytest.approx(1.0, rel=0.12)


def test_outputs_are_standardised_where_the_data_is() -> None:
    drawn = FlowGenerator(model(standardized=True), flow_scheduler()).draw(Request(Noise([1, 2])))
    torch.testing.assert_close(drawn.mean(1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(drawn.std(1), torch.ones(2))


def test_the_loss_is_that_of_the_velocity() -> None:
    """But where there is hardly any noise: there it counts for less."""
    rdm = model()
    z, noise, sigma = torch.randn(6, DIM), torch.randn(6, DIM), torch.tensor([0.01, 0.1, 0.4, 0.5, 0.9, 1.0])
    losses = FlowObjective(rdm).loss(z, sigma, noise)
    s = sigma[:, None]
    velocity = rdm((1 - s) * z + s * noise, 1000 * sigma).sample
    expected = (velocity - (noise - z)).square().mean(1) * torch.tensor([0.01, 1, 1, 1, 1, 1])
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def test_noise_levels_and_statistics_come_from_the_data() -> None:
    data = torch.from_numpy(modes(400, DIM).vectors)
    objective = FlowObjective(model(), time_std=0.5)
    objective.fit(data)
    assert float(objective.shift) == pytest.approx(half_hidden_noise(data))
    assert float(objective.shift) > 1.1  # three modes: the entries go together
    z = objective.rdm.normalize(data)
    torch.testing.assert_close(z.mean(0), torch.zeros(DIM), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, unbiased=False), torch.ones(DIM))
    torch.testing.assert_close(objective.rdm.denormalize(z), data)
    levels = objective.noise_levels((torch.arange(1001) + 0.5) / 1001)
    assert float(levels[500] / (1 - levels[500])) == pytest.approx(float(objective.shift), rel=1e-4)
    assert float(torch.logit(levels).std()) == pytest.approx(0.5, rel=0.02)
    scheduler = objective.generator.scheduler
    assert isinstance(scheduler, DPMSolverMultistepScheduler)
    assert scheduler.config.flow_shift == pytest.approx(float(objective.shift), abs=1e-4)
    given = FlowObjective(model(), time_shift=0.25)
    given.fit(data)
    assert float(given.shift) == 0.25
    assert given.identity() == {"noise_levels": [0.25, 1.0]} != objective.identity()
    assert {"shift", "rdm.mean", "rdm.std"} <= given.state_dict().keys()


def test_guidance_extrapolates_the_velocity() -> None:
    rdm = model(3)
    generator = FlowGenerator(rdm, FlowMatchEulerDiscreteScheduler())

    def draw(label: int | None, scale: float) -> torch.Tensor:
        labels = None if label is None else torch.full((4,), label)
        return generator.draw(Request(Noise([1, 2, 3, 4]), labels, 1, scale))

    with_class, without = draw(1, 1.0), draw(None, 1.0)
    torch.testing.assert_close(draw(1, 2.5), without + 2.5 * (with_class - without), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(draw(1, 0.0), without, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(draw(3, 1.0), without)


def test_what_cannot_be_used_says_so() -> None:
    with pytest.raises(UserError, match="does not integrate a flow"):
        FlowGenerator(model(), DDIMScheduler()).check()
    with pytest.raises(UserError, match="between 1 and 1000"):
        FlowGenerator(model(), flow_scheduler()).draw(Request(Noise([1]), num_inference_steps=0))
    with pytest.raises(UserError, match="unconditional"):
        FlowGenerator(model(), flow_scheduler()).draw(Request(Noise([1]), torch.tensor([0])))
    with pytest.raises(UserError, match="knows 0 to 2"):
        FlowGenerator(model(3), flow_scheduler()).draw(Request(Noise([1]), torch.tensor([4])))
    with pytest.raises(UserError, match="needs num_classes"):
        FlowMLP(DIM, 24, 2, class_dropout=0.1)
    for wrong in (0.0, float("nan"), 1e9):
        with pytest.raises(UserError, match="time_shift"):
            FlowObjective(model(), wrong)
    broken = model()
    broken.mlp.out[-1].bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        FlowGenerator(broken, flow_scheduler()).draw(Request(Noise([1])))
