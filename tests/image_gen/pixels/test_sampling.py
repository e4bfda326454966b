"""Sampling: the exact answer where there is one, guidance, one image whatever its batch, and refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from rcg.core.errors import UserError
from rcg.core.flow import FlowSolver, flow_scheduler
from rcg.core.pictures import from_signed, to_signed
from rcg.core.rng import Noise
from rcg.image_gen.conditions import Guidance
from rcg.image_gen.pixels.generator import PixelGenerator
from rcg.image_gen.pixels.sampling import sample_images
from rcg.image_gen.pixels.scheduler import KarrasFlowScheduler
from rcg.image_gen.protocol import Request
from tests.image_gen.pixel_dit.models import CONDITIONS, given, tiny

MEAN, STD = 0.3, 0.25
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


class Gaussian:
    """Knows the data to be N(MEAN, STD²) in every pixel: predicts E[x | x_t], whose flow ends at MEAN + STD · noise."""

    device, block_rows = torch.device("cpu"), 64
    config = SimpleNamespace(condition="none")

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, x: torch.Tensor, t: float, *_: Any) -> torch.Tensor:
        self.times.append(t)
        gain = t * STD**2 / (t**2 * STD**2 + (1 - t) ** 2)
        return MEAN + gain * (x - t * MEAN)


def scheduler_named(name: str) -> Any:
    if name == "KarrasFlowScheduler":
        return KarrasFlowScheduler()
    if name == "even":
        return flow_scheduler()
    return getattr(diffusers, name)(**({} if name.startswith("Flow") else FLOW))


@pytest.mark.parametrize(
    ("name", "steps", "evaluations", "tolerance"),
    [
        ("KarrasFlowScheduler", 40, 40, 0.02),
        ("even", 20, 20, 0.01),
        ("FlowMatchEulerDiscreteScheduler", 200, 200, 0.03),
        ("FlowMatchHeunDiscreteScheduler", 20, 39, 0.03),
        ("UniPCMultistepScheduler", 20, 20, 0.01),
    ],
)
def test_the_flow_of_a_gaussian_ends_where_it_must(name: str, steps: int, evaluations: int, tolerance: float) -> None:
    noise = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Gaussian()
    images = sample_images(model, scheduler_named(name), noise, num_inference_steps=steps)  # type: ignore[arg-type]
    assert (images - (MEAN + STD * noise)).abs().max() < tolerance * STD * noise.abs().max()
    assert images.mean().item() == pytest.approx(MEAN + STD * noise.mean().item(), abs=tolerance * STD)
    assert images.std().item() == pytest.approx(STD * noise.std().item(), rel=tolerance)
    assert len(model.times) == evaluations
    assert 0 <= model.times[0] < 0.002
    assert model.times == sorted(model.times)
    last = 0.02 / 1.02 if name == "KarrasFlowScheduler" else 1 / steps
    assert 1 - model.times[-1] == pytest.approx(last, rel=0.03)  # no evaluation is wasted on next to no noise


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "even", "KarrasFlowScheduler"]
)
def test_one_step_is_the_prediction(name: str) -> None:
    noise = torch.randn(2, 3, 8, 8)
    images = sample_images(Gaussian(), scheduler_named(name), noise, num_inference_steps=1)  # type: ignore[arg-type]
    assert torch.allclose(images, Gaussian()(noise, 1e-3 if name == "even" else 0.0), atol=1e-3)


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


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", ["KarrasFlowScheduler", "even", "FlowMatchHeunDiscreteScheduler"])
def test_an_image_does_not_depend_on_its_batch(condition: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcg.image_gen.pixel_dit.transformer.BLOCK_TOKENS", 64)  # four images a block
    model, seen = tiny(condition), []
    generator = PixelGenerator(model, scheduler_named(name))
    scale = {"guidance": Guidance(2.0)} if condition != "none" else {}
    callback = {"callback": lambda _i, codes: seen.append(codes)}
    whole = generator.generate(request(5, condition, **scale, **callback))
    assert whole.dtype == torch.uint8
    assert whole.shape == (5, 3, 8, 8)
    assert len(seen) == 4
    assert torch.equal(seen[-1], whole)
    for i in range(5):
        assert torch.equal(generator.generate(request(1, condition, i, **scale)), whole[i : i + 1])
    noise = Noise([100 + i for i in range(5)]).normal(0, 3 * 64).view(5, 3, 8, 8)
    floats = sample_images(model, scheduler_named(name), noise, **given(condition, 5))
    alone = sample_images(model, scheduler_named(name), noise[4:], **{k: v[4:] for k, v in given(condition, 5).items()})
    assert torch.equal(alone, floats[4:])


@pytest.mark.parametrize("condition", ["representation", "class"])
def test_guidance(condition: str) -> None:
    model, noise = tiny(condition), torch.randn(3, 3, 8, 8)
    common: dict[str, Any] = {"num_inference_steps": 1, **given(condition, 3)}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    off = sample_images(model, scheduler, noise, **common)
    assert torch.equal(sample_images(model, scheduler, noise, **common, guidance=Guidance()), off)
    with torch.no_grad():
        c, u = model(noise, 0.0, **given(condition, 3)), model(noise, 0.0)
    assert torch.allclose(off, c, atol=1e-5)
    guided = sample_images(model, scheduler, noise, **common, guidance=Guidance(3.0))
    assert torch.allclose(guided, u + 3 * (c - u), atol=1e-4)
    late = sample_images(model, scheduler, noise, **common, guidance=Guidance(3.0, interval=(0.1, 1.0)))
    assert torch.equal(late, off)
    common["num_inference_steps"] = 4
    late = sample_images(model, scheduler, noise, **common, guidance=Guidance(3.0, interval=(0.1, 1.0)))
    assert not torch.allclose(late, sample_images(model, scheduler, noise, **common), atol=1e-3)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_autoguidance_is_away_from_the_guiding_model(condition: str) -> None:
    model, weaker, noise = tiny(condition), tiny(condition, seed=1), torch.randn(3, 3, 8, 8)
    common: dict[str, Any] = {"num_inference_steps": 1, **given(condition, 3)}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    good, bad = (sample_images(m, scheduler, noise, **common) for m in (model, weaker))
    guided = sample_images(model, scheduler, noise, **common, guidance=Guidance(2.0), guiding_model=weaker)
    assert torch.allclose(guided, bad + 2 * (good - bad), atol=1e-4)
    assert PixelGenerator(model, scheduler, None, weaker).guidable


@pytest.mark.parametrize(
    ("condition", "arguments", "says"),
    [
        ("none", {"guidance": Guidance(2.0)}, "no condition to be guided by"),
        ("representation", {"guidance": Guidance(2.0)}, "guidance needs a representation"),
        ("class", {"class_labels": torch.tensor([0, 3])}, "class label 3 was given.* 0 to 2"),
        ("none", {"num_inference_steps": 0}, "0 steps were asked for, but their number must lie between 1 and 1000"),
        ("none", given("representation", 2), "representations were given"),
    ],
)
def test_requests_that_cannot_be(condition: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        sample_images(tiny(condition), flow_scheduler(), torch.zeros(2, 3, 8, 8), **arguments)


def test_a_model_without_null_condition_cannot_be_guided() -> None:
    model = tiny("class", condition_dropout=0.0)
    assert not PixelGenerator(model, flow_scheduler()).guidable
    with pytest.raises(UserError, match="condition_dropout=0"):
        sample_images(model, flow_scheduler(), torch.zeros(2, 3, 8, 8), **given("class", 2), guidance=Guidance(2.0))


def test_damaged_weights_are_no_images() -> None:
    model = tiny("none")
    model.head.linear.bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        sample_images(model, flow_scheduler(), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (diffusers.DDIMScheduler(), "DDIMScheduler as it is set does not integrate a flow"),
        (diffusers.UniPCMultistepScheduler(), "does not integrate a flow"),
        (diffusers.DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"), "adds noise at each step"),
        (diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "adds noise at each step"),
        (diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "use a fixed shift"),
        (
            diffusers.DEISMultistepScheduler(**FLOW),
            r"from a noise level of 0.999 to 0.\d+ in \d steps, but .*; take FlowM",
        ),
        (diffusers.SASolverScheduler(**FLOW), "where no noise is left; take FlowMatchHeunDiscreteScheduler"),
        (diffusers.UniPCMultistepScheduler(**FLOW, final_sigmas_type="sigma_min"), "where no noise is left"),
        (diffusers.DPMSolverMultistepScheduler(**FLOW, final_sigmas_type="sigma_min"), "to 0.01 in"),
        (diffusers.DPMSolverMultistepScheduler(**FLOW, use_karras_sigmas=True), "from a noise level of 157 to 0 in"),
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "from a noise level of 0 to 1 in"),
    ],
)
def test_schedulers_that_do_not_fit(scheduler: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        PixelGenerator(tiny(), scheduler).check()
    with pytest.raises(UserError, match=says):
        FlowSolver(scheduler, 5, torch.device("cpu"))


def test_many_steps_whose_timesteps_round_alike() -> None:
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=5.0)
    images = sample_images(Gaussian(), scheduler, noise, num_inference_steps=600)  # type: ignore[arg-type]
    assert torch.allclose(images, MEAN + STD * noise, atol=0.01)


def test_steps_that_nobody_looks_at_are_not_made_into_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a step's images are finite a GPU would have to be waited for."""
    made = list[torch.Tensor]()
    monkeypatch.setattr("rcg.image_gen.pixels.generator.from_signed", lambda x: made.append(x) or from_signed(x))
    generator, steps = PixelGenerator(tiny("none"), flow_scheduler()), list[int]()
    generator.generate(request(2, callback=lambda i, _codes: steps.append(i), watched=False))
    assert steps == [0, 1, 2, 3]
    assert len(made) == 1


def test_the_given_scheduler_is_left_untouched() -> None:
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    before = scheduler.timesteps.clone()
    sample_images(tiny("none"), scheduler, torch.zeros(1, 3, 8, 8), num_inference_steps=3)
    assert torch.equal(scheduler.timesteps, before)


def test_what_a_pipeline_asks_of_the_generator() -> None:
    generator = PixelGenerator(tiny("class"), flow_scheduler(), None)
    assert (generator.condition, generator.num_classes, generator.representation_dim) == ("class", 3, None)
    assert generator.guidable
    assert generator.decodable
    assert PixelGenerator(tiny(), flow_scheduler()).representation_dim == 6
    defaults = generator.defaults()
    assert defaults["temperature"] is None
    generator.check()
    generator.check_settings(defaults)
    with pytest.raises(UserError, match="has no temperature"):
        generator.check_settings({**defaults, "temperature": 1.0})
    with pytest.raises(UserError, match="num_inference_steps is 1001"):
        generator.check_settings({**defaults, "num_inference_steps": 1001})
    with pytest.raises(UserError, match="leave the tokenizer out"):
        PixelGenerator(tiny(), flow_scheduler(), torch.nn.Identity()).check()
    with pytest.raises(UserError, match="4 channels"):
        PixelGenerator(tiny("none", in_channels=4), flow_scheduler()).check()


def test_codes_are_the_bytes_of_the_images() -> None:
    codes = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, -1, -1)
    generator = PixelGenerator(tiny(), flow_scheduler())
    images = generator.decode(codes)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert torch.equal((images * 255).round().to(torch.uint8), codes)
    assert torch.equal(from_signed(to_signed(codes)), codes)
    assert from_signed(torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2)).flatten().tolist() == [0, 255]
