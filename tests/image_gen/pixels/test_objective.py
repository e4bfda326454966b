"""The objective: the loss against a loop in plain numbers, its times, its figures, and that it is learnt."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rcg.core.errors import UserError
from rcg.image_gen.pixels.objective import PixelObjective
from tests.image_gen.pixel_dit.models import CONDITIONS, batch, given, tiny


@pytest.mark.parametrize("condition", CONDITIONS)
def test_loss_equals_a_loop_in_plain_numbers(condition: str) -> None:
    model = tiny(condition).double()
    model.time_embed.float()  # its sinusoids are fp32
    data, generator = batch(condition, 4), torch.Generator().manual_seed(5)
    times = torch.tensor([0.0, 0.3, 0.97, 1.0])  # the last two below the floor of 1 - t
    noise = torch.randn(4, 3, 8, 8, generator=generator)
    dropped = torch.tensor([0.05, 0.5, 0.09, 0.11])
    loss = PixelObjective(model.float(), noise_floor=0.05)(data, times, noise, dropped)["loss"]

    total = 0.0
    for i in range(4):
        t, clean, noisy = float(times[i]), torch.empty(3, 8, 8), torch.empty(3, 8, 8)
        for place in torch.cartesian_prod(*map(torch.arange, (3, 8, 8))).tolist():
            c, y, x = place
            pixel = int(data["images"][i, c, y, x])
            clean[c, y, x] = pixel / 255 * 2 - 1
            noisy[c, y, x] = t * clean[c, y, x] + (1 - t) * noise[i, c, y, x]
        shown = {} if dropped[i] < 0.1 else {k: v[i : i + 1] for k, v in given(condition, 4).items()}
        with torch.no_grad():
            predicted = model(noisy[None], t, **shown)[0]
        squares = [(float(p) - float(q)) ** 2 for p, q in zip(predicted.flatten(), clean.flatten(), strict=True)]
        total += sum(squares) / len(squares) / max(1 - t, 0.05) ** 2
    assert loss.item() == pytest.approx(total / 4, rel=1e-5)


def test_times_are_drawn_from_their_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = PixelObjective(tiny("none"), time_mean=-0.5, time_std=0.7)
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(objective, "losses", lambda _x, t, *_: drawn.append(t) or t)
    torch.manual_seed(0)
    for _ in range(200):
        objective(batch("none", 32))
    logits = torch.logit(torch.stack(drawn).double())
    assert logits.mean().item() == pytest.approx(-0.5, abs=0.02)
    assert logits.std().item() == pytest.approx(0.7, abs=0.02)
    uniform = torch.special.ndtr((logits + 0.5) / 0.7)
    assert torch.equal((uniform * 32).long(), torch.arange(32).expand(200, -1))  # one in each 32nd part
    assert uniform.mul(32).frac().mean().item() == pytest.approx(0.5, abs=0.02)


def test_condition_is_dropped_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = PixelObjective(tiny(condition_dropout=0.3))
    drops: list[torch.Tensor] = []
    monkeypatch.setattr(objective, "losses", lambda _x, t, _n, _g, drop: drops.append(drop) or t)
    torch.manual_seed(0)
    objective(batch("representation", 3000))
    assert drops[0].float().mean().item() == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_figures_of_held_out_images(condition: str) -> None:
    objective, data = PixelObjective(tiny(condition)), batch(condition, 70)
    figures = objective.evaluate(data, seed=3)
    torch.rand(1)
    assert objective.evaluate(data, seed=3) == figures
    assert objective.evaluate(data, seed=4) != figures
    quantiles = torch.tensor([(i + 0.5) / 70 for i in range(70)])
    times, noise = objective.times(quantiles), torch.randn(70, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    assert figures["velocity_error"] == pytest.approx(
        objective(data, times, noise, torch.ones(70))["loss"].item(), rel=1e-5
    )
    assert ("velocity_error_unconditional" in figures) == (condition != "none")
    if condition != "none":
        without = objective(data, times, noise, torch.zeros(70))["loss"].item()
        assert figures["velocity_error_unconditional"] == pytest.approx(without, rel=1e-5)


def test_a_model_without_null_condition_has_no_unconditional_figure() -> None:
    objective = PixelObjective(tiny("class", condition_dropout=0.0))
    assert objective.evaluate(batch("class", 4), 0).keys() == {"velocity_error"}
    assert torch.isfinite(objective(batch("class", 4))["loss"])


def test_pixels_are_their_own_codes() -> None:
    objective, images = PixelObjective(tiny()), batch("none", 3)["images"]
    assert torch.equal(objective.encode(images.float() / 255), images)
    assert objective.field == "images"
    objective.check_codes(images)
    for wrong in (images.float(), images[:, :1], images[..., :7]):
        with pytest.raises(UserError, match=r"takes uint8 of shape \[3, 8, 8\]"):
            objective.check_codes(wrong)
    assert objective.identity() == {"times": [0.4, 1.2], "noise_floor": 0.05}
    assert objective.generator.model is objective.model
    objective.generator.check()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"time_mean": math.nan}, r"time_mean is nan, but it must lie in \[-10, 10\]"),
        ({"time_std": 0.0}, r"time_std is 0.0, but it must lie in \(0, 10\]"),
        ({"noise_floor": 0.0}, r"noise_floor is 0.0, but it must lie in \(0, 1\]"),
        ({"noise_floor": 1.5}, "noise_floor is 1.5"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        PixelObjective(tiny(), **changes)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_loss_of_a_few_images_falls(bf16: bool) -> None:
    torch.manual_seed(0)
    colours = torch.randint(256, (32, 3, 1, 1), dtype=torch.uint8)
    data = {"images": colours.expand(-1, -1, 8, 8).contiguous()}
    objective = PixelObjective(tiny("none", stirred=False, width=32)).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    losses = []
    for _ in range(100):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = objective(data)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
