"""The reference's values: outputs, losses, whole generations, for each condition."""

from __future__ import annotations

import pytest
import torch

from rcg.image_gen.conditions import Guidance
from rcg.image_gen.diffusion.gaussian import spaced
from rcg.image_gen.diffusion.generator import default_scheduler
from rcg.image_gen.diffusion.objective import DiffusionObjective
from rcg.image_gen.latent_dit.generator import DiTGenerator
from rcg.image_gen.protocol import Request
from tests.image_gen.latent_dit import golden


@pytest.mark.parametrize("name", golden.MODELS)
@torch.no_grad()
def test_outputs(name: str) -> None:
    model, x, times = golden.model(name), golden.tensor("common", "x"), golden.tensor("common", "times")
    given = golden.given(name)
    assert golden.relative(model(x, times, **given), golden.tensor(name, "output")) < 1e-5
    mixed = model(x, times, **given, drop_condition=golden.dropped(name))
    assert golden.relative(mixed, golden.tensor(name, "dropped_output")) < 1e-5
    changed = golden.relative(golden.tensor(name, "dropped_output"), golden.tensor(name, "output"))
    assert (changed > 0.01) == (name in golden.GUIDED)  # so that the values can tell


@pytest.mark.parametrize("name", golden.MODELS)
@torch.no_grad()
def test_losses(name: str) -> None:
    objective = DiffusionObjective(DiTGenerator(golden.model(name), default_scheduler()))
    start, added = golden.tensor("common", "start"), golden.tensor("common", "added")
    times = golden.tensor("common", "times")
    parts = objective.losses(start, times, added, golden.given(name), golden.dropped(name))
    assert torch.allclose(parts["noise_error"], golden.tensor(name, "loss/mse"), rtol=1e-5)
    if name == "fixed":
        assert parts.keys() == {"noise_error"}
    else:
        assert torch.allclose(parts["bound"], golden.tensor(name, "loss/vb"), rtol=1e-5)  # the first is at t = 0
    names = {"representations": "representations", "class_labels": "labels"}
    batch = {"latents": start, **{names[k]: v for k, v in golden.given(name).items()}}
    drops = golden.tensor("common", "drops")
    loss = objective(batch, times, added, drops)["loss"]
    assert loss.item() == pytest.approx(golden.tensor(name, "loss/loss").mean().item(), rel=1e-5)


def generate(name: str, generator: DiTGenerator, guidance: Guidance) -> torch.Tensor:
    given = golden.given(name, 2)
    return generator.generate(
        Request(
            golden.Recorded(),  # type: ignore[arg-type]
            given.get("representations"),
            given.get("class_labels"),
            num_inference_steps=6,
            temperature=None,
            guidance=guidance,
            exact=True,
        )
    )


@pytest.mark.parametrize("name", golden.MODELS)
def test_whole_generations(name: str) -> None:
    generator = DiTGenerator(golden.model(name), default_scheduler())
    assert golden.relative(generate(name, generator, Guidance()), golden.tensor(name, "generated")) < 1e-5
    generator.clip = True  # as the reference does with pixels
    assert golden.relative(generate(name, generator, Guidance()), golden.tensor(name, "clipped")) < 1e-5


@pytest.mark.parametrize("name", golden.GUIDED)
def test_guided_generations(name: str) -> None:
    scale = float(golden.arrays("common")["guidance"])
    generator = DiTGenerator(golden.model(name), default_scheduler())
    assert golden.relative(generate(name, generator, Guidance(scale)), golden.tensor(name, "guided")) < 1e-5
    generator.exact_guided_channels = None  # not only the first three
    assert golden.relative(generate(name, generator, Guidance(scale)), golden.tensor(name, "guided")) > 0.01


@pytest.mark.parametrize("count", [2, 7, 25, 250])
def test_spaced_steps(count: int) -> None:
    assert spaced(1000, count) == golden.arrays("common")[f"spaced_{count}"].tolist()


def test_the_files_are_small() -> None:
    assert sum(file.stat().st_size for file in golden.FOLDER.iterdir()) < 300_000
