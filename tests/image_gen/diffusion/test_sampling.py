"""Sampling: the exact answer where there is one, guidance, one image whatever its batch, and refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, get_args

import diffusers
import pytest
import torch

from rcg.core.errors import UserError
from rcg.core.rng import Noise
from rcg.image_gen.conditions import Guidance
from rcg.image_gen.diffusion.gaussian import betas_of
from rcg.image_gen.diffusion.generator import default_scheduler
from rcg.image_gen.diffusion.sampling import Drawing, check_scheduler, sample_exactly, sample_quickly
from rcg.image_gen.latent_dit.generator import DiTGenerator
from rcg.image_gen.prediction import PredictionType
from rcg.image_gen.protocol import Request
from tests.image_gen.latent_dit.models import CONDITIONS, given, tiny

MEAN, STD = 0.3, 0.25
SHAPE = (3, 8, 8)
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon"}
ALPHAS = torch.cumprod(1 - betas_of(default_scheduler()), 0)


class Gaussian:
    """Knows the data to be N(MEAN, STD²) in every number: predicts E[ε | x_t] (or E[v | x_t]), whose flow ends at MEAN + STD · noise."""

    device = torch.device("cpu")
    config = SimpleNamespace(condition="none")

    def __init__(self, prediction_type: str = "epsilon") -> None:
        self.times: list[float] = []
        self.prediction_type = prediction_type

    def __call__(self, x: torch.Tensor, t: float, *_: Any) -> torch.Tensor:
        self.times.append(t)
        levels = (1 / ALPHAS - 1).sqrt()  # between two steps as diffusers takes it
        level = float(torch.lerp(levels[math.floor(t)], levels[math.ceil(t)], t - math.floor(t)))
        alpha = 1 / (1 + level**2)
        noise = (1 - alpha) ** 0.5 * (x - alpha**0.5 * MEAN) / (alpha * STD**2 + 1 - alpha)
        if self.prediction_type == "epsilon":
            return noise
        clean = (x - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        return alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean


def request(count: int, condition: str = "none", first: int = 0, **changes: Any) -> Request:
    """Of images `first … first + count - 1` of one seed."""
    rows = {k: v[first:] for k, v in given(condition, first + count).items()}
    settings = {"num_inference_steps": 4, "temperature": None, **changes}
    return Request(
        Noise([100 + i for i in range(first, first + count)]),
        rows.get("representations"),
        rows.get("class_labels"),
        **settings,
    )


def scheduler_named(name: str, prediction_type: PredictionType = "epsilon") -> Any:
    if name == "default":
        return default_scheduler(prediction_type)
    options = {
        **LINEAR,
        "prediction_type": prediction_type,
        **({"clip_sample": False} if name.startswith("DD") else {}),
    }
    return getattr(diffusers, name)(**options)


@pytest.mark.parametrize("prediction_type", get_args(PredictionType))
@pytest.mark.parametrize(
    ("name", "steps", "evaluations", "tolerance"),
    [
        ("default", 25, 25, 0.015),
        ("default", 100, 100, 0.003),
        ("DDIMScheduler", 200, 200, 0.05),
        ("EulerDiscreteScheduler", 200, 200, 0.05),
        ("HeunDiscreteScheduler", 40, 79, 0.03),
        ("UniPCMultistepScheduler", 60, 60, 0.04),
    ],
)
def test_the_flow_of_a_gaussian_ends_where_it_must(
    name: str, steps: int, evaluations: int, tolerance: float, prediction_type: PredictionType
) -> None:
    model, seen = Gaussian(prediction_type), list[torch.Tensor]()
    asked = request(6, num_inference_steps=steps, callback=lambda _i, x: seen.append(x))
    drawn = sample_quickly(Drawing(model, None, scheduler_named(name, prediction_type), SHAPE, 8), asked)
    noise = asked.noise.normal(0, math.prod(SHAPE)).view(6, *SHAPE)
    assert (drawn - (MEAN + STD * noise)).abs().max() < tolerance * STD * noise.abs().max()
    assert len(model.times) == evaluations
    assert model.times == sorted(model.times, reverse=True)
    assert len(seen) == steps
    assert torch.equal(seen[-1], drawn)
    assert (seen[0] - MEAN).abs().max() < 0.1  # at first, nothing but the mean is known
    assert max(model.times) == pytest.approx(999, abs=5)


@pytest.mark.parametrize(("skips", "evaluations"), [(True, 26), (False, 34)])
def test_steps_are_counted_where_a_scheduler_makes_more_evaluations(skips: bool, evaluations: int) -> None:
    model, seen = Gaussian(), list[tuple[int, torch.Tensor]]()
    scheduler = diffusers.PNDMScheduler(**LINEAR, skip_prk_steps=skips, timestep_spacing="trailing")
    asked = request(2, num_inference_steps=25, callback=lambda i, x: seen.append((i, x)))
    drawn = sample_quickly(Drawing(model, None, scheduler, SHAPE, 8), asked)
    assert len(model.times) == evaluations
    assert [i for i, _ in seen] == list(range(25))
    assert torch.equal(seen[-1][1], drawn)


@pytest.mark.parametrize("prediction_type", get_args(PredictionType))
@pytest.mark.parametrize("name", ["exact", "DDPMScheduler", "EulerAncestralDiscreteScheduler", "sde"])
def test_samplers_with_noise_draw_from_the_gaussian(name: str, prediction_type: PredictionType) -> None:
    asked = request(24, num_inference_steps=100)
    if name == "sde":
        options = {**LINEAR, "prediction_type": prediction_type}
        scheduler: Any = diffusers.DPMSolverMultistepScheduler(**options, algorithm_type="sde-dpmsolver++")
    else:
        scheduler = scheduler_named("default" if name == "exact" else name, prediction_type)
    draw = sample_exactly if name == "exact" else sample_quickly
    model = Gaussian(prediction_type)
    drawn = draw(Drawing(model, None, scheduler, SHAPE, 32), asked)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert drawn.std().item() == pytest.approx(STD, rel=0.12)
    alone = draw(Drawing(model, None, scheduler, SHAPE, 32), request(1, first=5, num_inference_steps=100))
    assert torch.allclose(alone, drawn[5:6], atol=1e-5)  # its noise is its own


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize(
    "name", ["default", "HeunDiscreteScheduler", "DDPMScheduler", "SASolverScheduler", "TCDScheduler", "exact"]
)
def test_an_image_does_not_depend_on_its_batch(condition: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcg.image_gen.latent_dit.generator.BLOCK_TOKENS", 64)  # four images a block
    exact = name == "exact"
    generator = DiTGenerator(tiny(condition), scheduler_named("default" if exact else name))
    settings: dict[str, Any] = {"exact": exact}
    if condition != "none":
        settings["guidance"] = Guidance(2.0)
    seen = list[torch.Tensor]()
    whole = generator.generate(request(5, condition, **settings, callback=lambda _i, x: seen.append(x)))
    assert whole.shape == (5, 4, 8, 8)
    assert len(seen) == 4
    for i in range(5):
        assert torch.equal(generator.generate(request(1, condition, i, **settings)), whole[i : i + 1])


class Sum:
    """ε = c · condition, or `null` without one, of four channels and a choice of variance."""

    device = torch.device("cpu")

    def __init__(self, weight: float, null: float = 0.0, learned: bool = True) -> None:
        self.config = SimpleNamespace(condition="representation", condition_dropout=0.1, representation_dim=1)
        self.weight, self.null, self.learned = weight, null, learned

    def __call__(self, x: torch.Tensor, t: float, representations: torch.Tensor | None, _: None) -> torch.Tensor:
        value = self.null if representations is None else self.weight * representations
        noise = torch.zeros_like(x) + (value if isinstance(value, float) else value[:, :, None, None])
        return torch.cat([noise, torch.full_like(noise, float(self.null))], dim=1) if self.learned else noise


def guided(model: Any, t: float, guidance: Guidance, weaker: Any = None, channels: int | None = None) -> Any:
    reps = torch.tensor([[1.0], [2.0]])
    asked = Request(Noise([0, 1]), reps, None, 4, None, guidance)
    drawing = Drawing(model, weaker, default_scheduler(), (4, 2, 2), 2, channels)
    return drawing.guided(asked)(torch.zeros(2, 4, 2, 2), t)


def test_guidance_is_away_from_the_null_condition_or_the_weaker_model() -> None:
    model = Sum(1.0, null=0.5)
    noise, choice = guided(model, 500, Guidance(3.0))
    assert noise[:, :, 0, 0].tolist() == [[0.5 + 3 * 0.5] * 4, [0.5 + 3 * 1.5] * 4]
    assert (choice == 0.5).all()  # the variance is not guided
    noise, _ = guided(model, 500, Guidance(3.0), channels=3)
    assert noise[:, :, 0, 0].tolist() == [[2.0] * 3 + [1.0], [5.0] * 3 + [2.0]]
    noise, _ = guided(model, 500, Guidance(3.0), weaker=Sum(0.5))
    assert noise[:, 0, 0, 0].tolist() == [0.5 + 3 * 0.5, 1.0 + 3 * 1.0]
    noise, choice = guided(Sum(1.0, learned=False), 500, Guidance(3.0))
    assert choice is None
    assert noise[:, 3, 0, 0].tolist() == [3.0, 6.0]


@pytest.mark.parametrize(("t", "scale"), [(999, 1.0), (499.5, 2.0), (0, 3.0), (999.4, 1.0)])
def test_progress_goes_from_noise_to_data(t: float, scale: float) -> None:
    noise, _ = guided(Sum(1.0), t, Guidance(3.0, "linear"))
    assert noise[0, 0, 0, 0].item() == pytest.approx(scale)
    noise, _ = guided(Sum(1.0), t, Guidance(3.0, interval=(0.4, 0.6)))
    assert noise[0, 0, 0, 0].item() == pytest.approx(3.0 if t == 499.5 else 1.0)


def test_exact_steps_are_those_of_the_reference() -> None:
    model = Gaussian()
    sample_exactly(Drawing(model, None, default_scheduler(), SHAPE, 8), request(1, num_inference_steps=5))
    assert model.times == [999, 749, 500, 250, 0]


@pytest.mark.parametrize("prediction_type", get_args(PredictionType))
def test_clipping_is_for_data_in_a_range(prediction_type: PredictionType) -> None:
    class Far(Gaussian):
        def __call__(self, x: torch.Tensor, t: float, *_: Any) -> torch.Tensor:
            alpha = float(ALPHAS[int(t)])
            noise = (x - alpha**0.5 * 3) / (1 - alpha) ** 0.5  # all data are 3
            return noise if prediction_type == "epsilon" else alpha**0.5 * noise - (1 - alpha) ** 0.5 * 3

    asked = request(2, num_inference_steps=10)
    for name, draw in (("DDIMScheduler", sample_quickly), ("default", sample_exactly)):
        scheduler = scheduler_named(name, prediction_type)
        ends = [draw(Drawing(Far(), None, scheduler, SHAPE, 8, clip=clip), asked) for clip in (False, True)]
        assert torch.allclose(ends[0], torch.tensor(3.0), atol=0.1)
        assert ends[1].max() < 1.2


@pytest.mark.parametrize(
    ("condition", "arguments", "says"),
    [
        ("none", {"guidance": Guidance(2.0)}, "no condition to be guided by"),
        ("none", {"num_inference_steps": 0}, "0 steps were asked for, but their number must lie between 1 and 1000"),
        ("none", {"num_inference_steps": 1, "exact": True}, "exact sampling takes between 2 and 1000"),
    ],
)
def test_requests_that_cannot_be(condition: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        DiTGenerator(tiny(condition), default_scheduler()).generate(request(2, condition, **arguments))


def test_class_labels_that_are_unknown() -> None:
    asked = Request(Noise([1, 2]), None, torch.tensor([0, 3]), 4, None)
    with pytest.raises(UserError, match=r"class label 3 was given.* 0 to 2"):
        DiTGenerator(tiny("class"), default_scheduler()).generate(asked)


@pytest.mark.parametrize("exact", [False, True])
def test_damaged_weights_are_no_images(exact: bool) -> None:
    model = tiny("none")
    model.head.linear.bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        DiTGenerator(model, default_scheduler()).generate(request(1, exact=exact))


def unfit() -> Iterator[tuple[Any, str]]:
    yield diffusers.FlowMatchEulerDiscreteScheduler(), "takes no predicted noise"
    yield diffusers.DDIMScheduler(prediction_type="sample"), "DDIMScheduler as it is set takes no predicted noise"
    yield diffusers.UniPCMultistepScheduler(use_flow_sigmas=True), "follows a straight flow"
    yield diffusers.CogVideoXDPMScheduler(), "asks for more than a prediction and a sample"
    yield diffusers.DDPMScheduler(variance_type="learned_range"), "sample with exact=True to use the learned variance"


@pytest.mark.parametrize(("scheduler", "says"), unfit())
def test_schedulers_that_do_not_fit(scheduler: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_scheduler(scheduler)


def test_the_given_scheduler_is_left_untouched() -> None:
    scheduler = diffusers.DDIMScheduler(**LINEAR)
    before = scheduler.timesteps.clone()
    sample_quickly(Drawing(Gaussian(), None, scheduler, SHAPE, 8), request(1, num_inference_steps=5))
    assert torch.equal(scheduler.timesteps, before)
    assert scheduler.config.clip_sample


@pytest.mark.parametrize(
    ("name", "steps", "says"),
    [
        ("DDIMInverseScheduler", 5, "goes from data to noise"),
        ("DPMSolverMultistepInverseScheduler", 5, "goes from data to noise"),
        ("KDPM2AncestralDiscreteScheduler", 2, "cannot make 2 steps, as it finds no times for them"),
    ],
)
def test_schedulers_that_go_elsewhere(name: str, steps: int, says: str) -> None:
    scheduler = getattr(diffusers, name)(**LINEAR)
    with pytest.raises(UserError, match=f"{name} .*{says}"):
        sample_quickly(Drawing(Gaussian(), None, scheduler, SHAPE, 8), request(1, num_inference_steps=steps))
