"""DDIM against the reference's trajectories; any scheduler; any batch size; guidance."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from rcg.core.errors import UserError
from rcg.core.rng import sample_generators
from rcg.rdm.representation_mlp import RepresentationMLP
from rcg.rdm.sampling import default_steps, fast_scheduler, paper_scheduler, sample_representations
from rcg.rdm.schedule import alphas_cumprod, betas
from tests.rdm import golden

SCHEDULERS = [
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
]


PLAIN = {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False, "final_sigmas_type": "zero"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    diffusers.logging.set_verbosity(logging.ERROR)
    yield
    diffusers.logging.set_verbosity_warning()


def _scheduler(cls: type, **changes: object) -> object:
    plain = DPMSolverMultistepScheduler.from_config(fast_scheduler().config, **PLAIN)
    return cls.from_config(plain.config, **changes)  # type: ignore[attr-defined]


def _random_model(num_classes: int = 0, class_dropout: float = 0.0) -> RepresentationMLP:
    torch.manual_seed(0)
    rdm = RepresentationMLP(20, 48, 2, num_classes=num_classes, context_dim=8, class_dropout=class_dropout).eval()
    for parameter in rdm.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return rdm


class Gaussian(torch.nn.Module):
    """The exact denoiser of x0 ~ N(mean, std²): what every solver must turn noise into."""

    def __init__(self, mean: float, std: float, dim: int = 4) -> None:
        super().__init__()
        self.mean, self.std, self.device, self.null_class = mean, std, torch.device("cpu"), None
        self.config = type("Config", (), {"representation_dim": dim, "num_classes": 0})()

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: None, return_dict: bool) -> tuple[torch.Tensor]:
        position = torch.as_tensor(float(t))
        low = int(position)
        sigmas = ((1 - alphas_cumprod()) / alphas_cumprod()).sqrt()
        sigma = torch.lerp(sigmas[low], sigmas[min(low + 1, 999)], position.double() - low)
        alpha = float(1 / (1 + sigma**2))
        gain = alpha**0.5 * self.std**2 / (alpha * self.std**2 + 1 - alpha)
        return (self.mean + gain * (x - alpha**0.5 * self.mean),)


@pytest.mark.parametrize("kind", golden.KINDS)
def test_the_schedule_equals_the_reference(kind: str) -> None:
    assert golden.relative(betas(), golden.tensor(kind, "sched_betas")) < 1e-6
    assert golden.relative(alphas_cumprod(), golden.tensor(kind, "sched_alphas_cumprod")) < 1e-6
    assert golden.relative(paper_scheduler().alphas_cumprod, golden.tensor(kind, "sched_alphas_cumprod")) < 1e-5


@pytest.mark.parametrize("kind", golden.KINDS)
@pytest.mark.parametrize(
    ("steps", "eta", "weights"), [(50, 0, "ema"), (50, 1, "ema"), (50, 0, "raw"), (50, 1, "raw"), (250, 1, "ema")]
)
def test_ddim_trajectories_equal_the_reference(
    kind: str, steps: int, eta: int, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our sampler, with its random draws replaced by the recorded ones."""
    noise = list(golden.tensor(kind, f"s{steps}_noise"))
    draws = iter([golden.tensor(kind, f"s{steps}_xT"), *noise])
    monkeypatch.setattr("rcg.rdm.sampling.randn_tensor", lambda *a, **k: next(draws))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *a, **k: next(draws))
    seen: list[torch.Tensor] = []
    original = DDIMScheduler.step

    @functools.wraps(original)  # the sampler reads the signature
    def step(self: DDIMScheduler, output: torch.Tensor, t: int, x: torch.Tensor, **options: object) -> object:
        if len(x) == 4:  # not the trial on zeros, which asks whether the scheduler takes x0 predictions
            seen.append(x)
        return original(self, output, t, x, **options)

    monkeypatch.setattr(DDIMScheduler, "step", step)
    out = sample_representations(
        golden.model(kind, weights),  # type: ignore[arg-type]
        paper_scheduler(),
        4,
        num_inference_steps=steps,
        class_labels=golden.labels(kind, "ddim_labels"),
        eta=eta,
    )
    assert golden.relative(out, golden.tensor(kind, f"s{steps}_eta{eta}_{weights}_out")) < 1e-4
    assert len(seen) == steps
    if (steps, weights) == (50, "ema"):
        for mine, theirs in zip([*seen, out], golden.tensor(kind, f"s50_eta{eta}_ema_xs"), strict=True):
            assert golden.relative(mine, theirs) < 1e-4


def test_paper_timesteps_equal_the_reference() -> None:
    scheduler = paper_scheduler()
    for steps in (50, 250):
        name = "s50_eta1_ema_ddim_timesteps" if steps == 50 else "s250_ddim_timesteps"
        scheduler.set_timesteps(steps)
        assert torch.equal(scheduler.timesteps.flip(0), golden.tensor("uncond", name))
    assert default_steps(scheduler) == 250
    assert default_steps(fast_scheduler()) < 50


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_any_scheduler_samples_the_right_distribution(cls: type) -> None:
    """With the exact denoiser of a Gaussian: mean and spread come out right, also where a scheduler clips by default."""
    rdm = Gaussian(mean=1.5, std=0.6)
    out = sample_representations(
        rdm,  # type: ignore[arg-type]
        _scheduler(cls),
        2500,
        num_inference_steps=200,
        generator=torch.Generator().manual_seed(0),
        row_block=None,
    )
    assert float(out.mean()) == pytest.approx(1.5, abs=0.03)
    assert float(out.std()) == pytest.approx(0.6, rel=0.05)  # stochastic ones fall short of it by about 7 / steps


@pytest.mark.parametrize(
    ("cls", "conditional"),
    [(cls, False) for cls in SCHEDULERS] + [(cls, True) for cls in (DDIMScheduler, DPMSolverMultistepScheduler)],
)
def test_a_sample_does_not_depend_on_the_batch(cls: type, conditional: bool) -> None:
    rdm = _random_model(7, 0.1) if conditional else _random_model()
    labels = torch.arange(16) % 7 if conditional else None

    def draw(start: int, count: int) -> torch.Tensor:
        return sample_representations(
            rdm,
            _scheduler(cls),
            count,
            num_inference_steps=10,
            class_labels=None if labels is None else labels[start : start + count],
            guidance_scale=2.0 if conditional else 1.0,
            generator=sample_generators(3, start, count),
        )

    whole = draw(0, 16)
    fives = torch.cat([draw(0, 5), draw(5, 5), draw(10, 5), draw(15, 1)])
    ones = torch.cat([draw(i, 1) for i in range(16)])
    assert torch.equal(whole, fives)
    assert torch.equal(whole, ones)
    assert whole.unique(dim=0).shape[0] == 16


def test_a_sample_does_not_depend_on_the_batch_at_the_papers_width() -> None:
    torch.manual_seed(0)
    rdm = RepresentationMLP(256, 1536, 1).eval()
    for parameter in rdm.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    whole = sample_representations(
        rdm, fast_scheduler(), 33, num_inference_steps=2, generator=sample_generators(0, 0, 33)
    )
    one = sample_representations(rdm, fast_scheduler(), 1, num_inference_steps=2, generator=sample_generators(0, 32, 1))
    assert torch.equal(whole[32:], one)


def test_guidance_is_linear_and_the_same_in_x0_and_in_noise() -> None:
    rdm = _random_model(7, 0.1)

    class AsNoise(torch.nn.Module):
        """The same model, predicting the noise that its x0 implies."""

        config, device, null_class = rdm.config, rdm.device, rdm.null_class

        def forward(
            self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, return_dict: bool
        ) -> tuple[torch.Tensor]:
            alpha = paper_scheduler().alphas_cumprod[t]
            return ((x - alpha.sqrt() * rdm(x, t, labels).sample) / (1 - alpha).sqrt(),)

    kwargs = {"num_inference_steps": 20, "class_labels": [0, 1, 6], "guidance_scale": 3.0}
    x0 = sample_representations(rdm, paper_scheduler(), 3, generator=sample_generators(0, 0, 3), **kwargs)  # type: ignore[arg-type]
    noise = sample_representations(
        AsNoise(),  # type: ignore[arg-type]
        paper_scheduler("epsilon"),
        3,
        generator=sample_generators(0, 0, 3),
        **kwargs,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(x0, noise, rtol=1e-3, atol=1e-4)
    off = sample_representations(
        rdm,
        paper_scheduler(),
        3,
        generator=sample_generators(0, 0, 3),
        **{**kwargs, "guidance_scale": 1.0},  # type: ignore[arg-type]
    )
    assert (off - x0).abs().max() > 1e-3
    null = sample_representations(
        rdm,
        paper_scheduler(),
        3,
        generator=sample_generators(0, 0, 3),
        **{**kwargs, "guidance_scale": 0.0},  # type: ignore[arg-type]
    )
    without = sample_representations(
        rdm, paper_scheduler(), 3, num_inference_steps=20, generator=sample_generators(0, 0, 3)
    )
    torch.testing.assert_close(null, without, rtol=1e-4, atol=1e-5)


def test_the_global_random_state_and_the_scheduler_are_left_alone() -> None:
    rdm, scheduler = _random_model(), _scheduler(EulerAncestralDiscreteScheduler)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    sample_representations(rdm, scheduler, 2, num_inference_steps=5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(1), expected)
    assert scheduler.num_inference_steps is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("scheduler", "steps", "message"),
    [
        (paper_scheduler(), 300, "they do not divide 1000; use 250 or 500"),
        (paper_scheduler(), 1000, "leaves its schedule of 1000"),
        (paper_scheduler(), 1001, "between 1 and 1000"),
        (paper_scheduler(), 0, "between 1 and 1000"),
        (paper_scheduler(), 1, "noise is not pure"),
        (_scheduler(DDPMScheduler), 30, "they do not divide 1000; use 25 or 40"),
        (_scheduler(DPMSolverMultistepScheduler), 1000, "twice"),
        (_scheduler(DPMSolverMultistepScheduler, timestep_spacing="leading"), 600, "timestep_spacing='trailing'"),
        (_scheduler(EulerDiscreteScheduler), 2000, "between 1 and 1000"),
        (FlowMatchEulerDiscreteScheduler(), 10, "does not follow the noise schedule"),
    ],
)
def test_step_counts_that_cannot_be_made_say_so(scheduler: object, steps: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample_representations(_random_model(), scheduler, 2, num_inference_steps=steps)


@pytest.mark.parametrize(
    ("cls", "spacing"), [(DPMSolverMultistepScheduler, "trailing"), (UniPCMultistepScheduler, "linspace")]
)
@pytest.mark.parametrize("steps", [1, 7, 333, 999])
def test_solvers_make_any_number_of_steps(cls: type, spacing: str, steps: int) -> None:
    out = sample_representations(
        Gaussian(1.5, 0.0),  # type: ignore[arg-type]
        _scheduler(cls, timestep_spacing=spacing),
        3,
        num_inference_steps=steps,
        row_block=None,
    )
    torch.testing.assert_close(out, torch.full((3, 4), 1.5), atol=0.02, rtol=0)


def test_mistakes_say_so() -> None:
    plain, published, guided = _random_model(), _random_model(7), _random_model(7, 0.1)

    def draw(rdm: RepresentationMLP, count: int = 2, **kwargs: object) -> torch.Tensor:
        return sample_representations(rdm, fast_scheduler(), count, num_inference_steps=2, **kwargs)  # type: ignore[arg-type]

    with pytest.raises(UserError, match="unconditional; leave it at 1"):
        draw(plain, guidance_scale=2.0)
    with pytest.raises(UserError, match="unconditional; leave class_labels out"):
        draw(plain, class_labels=1)
    with pytest.raises(UserError, match="without a null class"):
        draw(published, class_labels=1, guidance_scale=2.0)
    with pytest.raises(UserError, match="give class_labels from 0 to 6"):
        draw(published)
    with pytest.raises(UserError, match="label 7 is out of range: this model knows 0 to 6"):
        draw(published, class_labels=[0, 7])
    with pytest.raises(UserError, match="needs class_labels"):
        draw(guided, guidance_scale=2.0)
    with pytest.raises(UserError, match="one for each of the 2 samples"):
        draw(guided, class_labels=[1, 2, 3])
    with pytest.raises(UserError, match="at least 1"):
        draw(plain, 0)
    with pytest.raises(UserError, match="1 generators were given for 2"):
        draw(plain, generator=sample_generators(0, 0, 1))
    with pytest.raises(UserError, match="eta is 2"):
        draw(plain, eta=2)


def test_half_precision_weights_sample_in_float32() -> None:
    rdm = _random_model()
    full = sample_representations(rdm, fast_scheduler(), 3, generator=sample_generators(0, 0, 3))
    half = sample_representations(rdm.bfloat16(), fast_scheduler(), 3, generator=sample_generators(0, 0, 3))
    assert half.dtype == torch.float32
    assert golden.relative(half, full) < 0.05
