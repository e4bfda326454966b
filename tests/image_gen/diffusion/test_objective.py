"""The objective: its draws, its figures, what is trained by which part; its values are in `tests/image_gen/latent_dit`."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

from rcg.core.errors import UserError
from rcg.image_gen.diffusion.generator import default_scheduler
from rcg.image_gen.diffusion.objective import DiffusionObjective
from rcg.image_gen.latent_dit.generator import DiTGenerator
from rcg.image_gen.latent_dit.transformer import DiT
from tests.image_gen.latent_dit.models import CONDITIONS, autoencoder_kl, batch, tiny


def objective_of(model: DiT) -> DiffusionObjective:
    return DiffusionObjective(DiTGenerator(model, default_scheduler()))


def test_steps_are_uniform_and_spread_over_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of(tiny("none"))
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(objective, "losses", lambda _x, t, *_: drawn.append(t) or {"noise_error": t.float()})
    torch.manual_seed(0)
    for _ in range(200):
        objective(batch("none", 8))
    steps = torch.stack(drawn)
    assert torch.equal(steps * 8 // 1000, torch.arange(8).expand(200, -1))  # one in each eighth
    assert (steps % 125).float().mean().item() == pytest.approx(62, abs=3)
    assert (int(steps.min()) >= 0, int(steps.max()) <= 999) == (True, True)


def test_condition_is_dropped_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of(tiny(condition_dropout=0.3))
    drops: list[torch.Tensor] = []
    monkeypatch.setattr(
        objective, "losses", lambda _x, t, _n, _g, drop: drops.append(drop) or {"noise_error": t.float()}
    )
    torch.manual_seed(0)
    objective(batch("representation", 3000))
    assert drops[0].float().mean().item() == pytest.approx(0.3, abs=0.04)


def test_the_bound_trains_the_variance_alone() -> None:
    model = tiny("none")
    objective, data = objective_of(model), batch("none", 4)["latents"]
    parts = objective.losses(data, torch.tensor([0, 9, 400, 999]), torch.randn_like(data), {})
    rows = {}  # of the head, whose values are patch by patch and then noise before variance
    for name, part in parts.items():
        (gradient,) = torch.autograd.grad(part.sum(), model.head.linear.weight, retain_graph=True)
        rows[name] = gradient.view(2, 2, 2, 4, -1).abs().amax(dim=(0, 1, 3, 4)) > 0
    assert rows["noise_error"].tolist() == [True, False]
    assert rows["bound"].tolist() == [False, True]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_figures_of_held_out_latents(condition: str) -> None:
    objective, data = objective_of(tiny(condition)), batch(condition, 70)
    figures = objective.evaluate(data, seed=3)
    torch.rand(1)
    assert objective.evaluate(data, seed=3) == figures
    assert objective.evaluate(data, seed=4) != figures
    steps = torch.tensor([int((i + 0.5) / 70 * 1000) for i in range(70)])
    noise = torch.randn(70, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    whole = objective(data, steps, noise, torch.ones(70))
    assert figures["noise_error"] == pytest.approx(whole["noise_error"].item(), rel=1e-5)
    assert figures["bound"] == pytest.approx(whole["bound"].item(), rel=1e-5)
    assert whole["loss"].item() == pytest.approx(figures["noise_error"] + figures["bound"], rel=1e-5)
    assert ("noise_error_unconditional" in figures) == (condition != "none")
    if condition != "none":
        without = objective(data, steps, noise, torch.zeros(70))["noise_error"].item()
        assert figures["noise_error_unconditional"] == pytest.approx(without, rel=1e-5)


def test_a_model_without_null_condition_or_variance_has_fewer_figures() -> None:
    objective = objective_of(tiny("class", condition_dropout=0.0, learn_sigma=False))
    assert objective.evaluate(batch("class", 4), 0).keys() == {"noise_error"}
    assert objective(batch("class", 4)).keys() == {"loss", "noise_error"}


def test_the_noise_schedule_is_the_schedulers() -> None:
    objective = objective_of(tiny())
    assert objective.identity() == {"noise": [1000, "linear", 1e-4, 0.02]}
    scheduler = DPMSolverMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195)
    other = DiffusionObjective(DiTGenerator(tiny(), scheduler))
    assert other.identity()["noise"] == [1000, "scaled_linear", 0.0015, 0.0195]
    assert not torch.equal(other.process.signal, objective.process.signal)
    assert not [name for name in objective.state_dict() if not name.startswith("model.")]  # tables are not saved


def test_velocity_in_the_place_of_noise() -> None:
    model, data = tiny("class", prediction_type="v_prediction"), batch("class", 6)
    of_noise = objective_of(model)
    of_velocity = DiffusionObjective(DiTGenerator(model, default_scheduler("v_prediction")))
    steps, noise, keep = torch.tensor([0, 9, 200, 500, 900, 999]), torch.randn(6, 4, 8, 8), torch.ones(6)
    noisy = of_noise.process.add_noise(data["latents"], noise, steps)
    predicted = model(noisy, steps, class_labels=data["labels"])[:, :4]
    velocity = DDPMScheduler().get_velocity(data["latents"], noise, steps)
    whole = of_velocity(data, steps, noise, keep)
    assert whole.keys() == {"loss", "velocity_error", "bound"}
    assert whole["velocity_error"].item() == pytest.approx((velocity - predicted).square().mean().item(), rel=1e-4)
    assert of_velocity.evaluate(data, 0).keys() == {"velocity_error", "velocity_error_unconditional", "bound"}
    # the bound is that of the x₀ that the velocity means
    clean = of_velocity.process.clean(noisy, predicted, steps)
    means = torch.stack([of_noise.process.prediction(noisy, clean, steps), predicted])
    choice = model(noisy, steps, class_labels=data["labels"])[:, 4:]
    log_variance = of_noise.process.log_variance(choice, steps, noisy)
    mean = of_noise.process.mean(of_noise.process.clean(noisy, means[0], steps), noisy, steps)
    bound = of_noise.process.bound(mean, log_variance, data["latents"], noisy, steps).mean().item()
    assert whole["bound"].item() == pytest.approx(bound, rel=1e-3)


def test_codes() -> None:
    objective = objective_of(tiny())
    objective.check_codes(torch.zeros(3, 4, 8, 8))
    for shape in ((3, 4, 8, 9), (3, 3, 8, 8), (3, 8, 8)):
        with pytest.raises(UserError, match=r"the data's latents have shape .* but the model takes \[4, 8, 8\]"):
            objective.check_codes(torch.zeros(shape))
    with pytest.raises(UserError, match="no autoencoder to compute them"):
        objective.encode(torch.zeros(1, 3, 16, 16))
    whole = DiffusionObjective(DiTGenerator(tiny(), default_scheduler(), autoencoder_kl()))
    assert whole.encode(torch.zeros(2, 3, 16, 16)).shape == (2, 4, 8, 8)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_loss_of_a_few_latents_falls(bf16: bool) -> None:
    torch.manual_seed(0)
    data = {"latents": torch.randn(16, 4, 1, 1).expand(-1, -1, 8, 8).contiguous()}
    objective = objective_of(tiny("none", stirred=False, width=32)).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = objective(data)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
