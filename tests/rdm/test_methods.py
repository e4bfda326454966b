"""What holds for every method: classes, guidance, samples that do not hang on their batch, training and its resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler

from rcg.core.components import load_any, load_scheduler
from rcg.core.errors import UserError
from rcg.core.flow import flow_scheduler
from rcg.core.rng import Noise
from rcg.rdm.codes.recipe import CodesRecipe
from rcg.rdm.ddpm.recipe import DDPMRecipe
from rcg.rdm.flow.recipe import FlowRecipe
from rcg.rdm.methods import METHODS, MODELS, SCHEDULERS, open_rdm
from rcg.rdm.protocol import Objective, RepresentationGenerator, Request, Task
from rcg.rdm.recipes import RECIPES, MethodName
from rcg.rdm.train import RDMStage
from rcg.training.config import TrainingConfig
from rcg.training.loop import train
from tests.rdm.data import modes

DIM = 8
NAMES = list(get_args(MethodName))
TINY: dict[str, Any] = {
    "ddpm": DDPMRecipe(48, 2, context_dim=8),
    "flow": FlowRecipe(48, 2, context_dim=8),
    "codes": CodesRecipe(4, 16, 32, 2, 2, dropout=0.0),
}


def objective(name: str, num_classes: int = 0) -> Objective:
    torch.manual_seed(0)
    made: Objective = TINY[name].objective(Task(DIM, num_classes, 0.1 if num_classes else 0.0))
    return made


def config(out: Path, steps: int, **changes: Any) -> TrainingConfig:
    settings = {
        "batch_size": 128,
        "lr": 3e-3,
        "ema_decay": 0.98,
        "weight_decay": 0.01,
        "warmup": 10,
        "eval_every": steps,
    }
    return TrainingConfig(out=out, steps=steps, device="cpu", precision="fp32", **settings | changes)  # type: ignore[arg-type]


def load(folder: Path) -> RepresentationGenerator:
    generator = open_rdm(load_any(MODELS, folder), load_scheduler(folder, *SCHEDULERS))
    generator.check()
    return generator


def test_names_agree() -> None:
    assert list(METHODS) == list(RECIPES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_training_learns_the_classes_and_guidance_leads_to_them(name: str, tmp_path: Path) -> None:
    stage = RDMStage(objective(name, 3), modes(1500, DIM), heldout=modes(600, DIM, seed=1))
    figures = train(stage, config(tmp_path, 500 if name == "codes" else 250))  # codes begin knowing no class
    assert {"rep_fd", "rep_fd_floor", "val_loss"} <= figures.keys()
    assert ("rep_fd_coded" in figures) == (name == "codes")
    assert figures["rep_fd"] < 0.35
    generator = load(tmp_path)
    assert type(generator) is METHODS[name].generator  # type: ignore[index]
    data = modes(2000, DIM, seed=2)
    assert data.labels is not None
    centres = torch.from_numpy(np.stack([data.vectors[data.labels == c].mean(0) for c in range(3)]))
    noise = Noise(list(range(150)))
    for label in range(3):

        def distances(scale: float, label: int = label) -> torch.Tensor:
            labels = torch.full((150,), label)
            return torch.cdist(generator.draw(Request(noise, labels, None, scale, blocks=False)), centres)

        for scale in (1.0, 1.5):
            assert float((distances(scale).argmin(1) == label).float().mean()) > 0.95
        # without the class, samples are of all; the more of it, the fewer are of others
        none, some = ((distances(scale).argmin(1) == label).float().mean() for scale in (0.0, 0.5))
        assert 0.15 < float(none) < 0.8
        assert float(some) > float(none)
    free = torch.cdist(generator.draw(Request(noise, blocks=False)), centres).argmin(1)
    assert free.bincount(minlength=3).min() > 10


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_depends_on_its_own_noise_and_label(name: str) -> None:
    made = objective(name, 3)
    made.fit(torch.from_numpy(modes(200, DIM).vectors))
    for parameter in made.rdm.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    made.rdm.eval()
    seeds, labels = list(range(70)), torch.arange(70) % 3
    for scale in (1.0, 2.0):
        together = made.generator.draw(Request(Noise(seeds), labels, 4, scale))
        for some in (slice(0, 1), slice(3, 20), slice(20, 70)):
            alone = made.generator.draw(Request(Noise(seeds[some]), labels[some], 4, scale))
            assert torch.equal(alone, together[some])
    assert not torch.equal(made.generator.draw(Request(Noise(seeds), (labels + 1) % 3, 4)), together)
    assert together.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_close(name: str) -> None:
    made = objective(name)
    made.fit(torch.from_numpy(modes(200, DIM).vectors))
    for parameter in made.rdm.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    made.rdm.eval()

    def draw(**how: Any) -> torch.Tensor:
        return made.generator.draw(Request(Noise(list(range(40))), num_inference_steps=4, **how))

    whole, half = draw(), draw(precision="bf16")
    assert half.shape == whole.shape == (40, DIM)
    assert half.dtype == torch.float32
    near = ((half - whole).norm(dim=1) < 0.1 * whole.norm(dim=1)).float().mean()
    assert float(near) > (0.7 if name == "codes" else 0.99)  # a code that is drawn near a boundary may be another one
    assert not torch.equal(half, whole) or name == "codes"
    assert torch.equal(draw(precision="bf16", exact=True), draw(exact=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    def stage() -> RDMStage:
        return RDMStage(objective(name, 3), modes(200, DIM), heldout=modes(40, DIM, seed=1))

    settings = {"batch_size": 16, "save_every": 4, "eval_every": 50, "warmup": 0, "lr_schedule": "constant"}
    train(stage(), config(tmp_path / "whole", 8, **settings))
    train(stage(), config(tmp_path / "parts", 4, **settings))
    train(stage(), config(tmp_path / "parts", 8, resume=True, **settings))
    for one, other in zip(*(load(tmp_path / f).model.state_dict().values() for f in ("whole", "parts")), strict=True):
        assert torch.equal(one, other)
    other_model = RDMStage(objective(name), modes(200, DIM))
    with pytest.raises(UserError, match="--resume: the run"):
        train(other_model, config(tmp_path / "parts", 8, resume=True, **settings))


def test_what_identifies_a_run() -> None:
    def identity(recipe: Any) -> dict[str, Any]:
        return RDMStage(recipe.objective(Task(DIM)), modes(20, DIM)).identity()

    recipes = [
        *TINY.values(), DDPMRecipe(48, 2, prediction_type="epsilon"), FlowRecipe(48, 2, time_shift=2.0),
        FlowRecipe(48, 2, time_std=2.0), CodesRecipe(4, 8, 32, 2, 2, dropout=0.0), CodesRecipe(2, 16, 32, 2, 2, dropout=0.0),
    ]  # fmt: skip
    found = [str(identity(recipe)) for recipe in recipes]
    assert len(set(found)) == len(recipes)
    standardized = FlowRecipe(48, 2).objective(Task(DIM, standardized=True))
    assert str(RDMStage(standardized, modes(20, DIM)).identity()) not in found


def test_refusals() -> None:
    with pytest.raises(UserError, match="no RDM that this library knows"):
        open_rdm(torch.nn.Linear(2, 2), DDIMScheduler())
    with pytest.raises(UserError, match="does not follow the noise schedule of this RDM"):
        open_rdm(objective("ddpm").rdm, flow_scheduler()).check()
    with pytest.raises(UserError, match="EDMEulerScheduler as it is set does not follow"):  # it has no betas to set
        open_rdm(objective("ddpm").rdm, EDMEulerScheduler()).check()
    with pytest.raises(UserError, match=r"other betas .* DDIMScheduler.from_config\(pipe.rdm_scheduler.config\)"):
        open_rdm(objective("ddpm").rdm, DDIMScheduler(prediction_type="sample")).check()
    open_rdm(objective("ddpm").rdm, DDIMScheduler.from_config(objective("ddpm").generator.scheduler.config)).check()
    with pytest.raises(UserError, match="--width 30 does not split"):
        CodesRecipe(width=30).objective(Task(DIM))
    for name in NAMES:
        plain = objective(name)
        with pytest.raises(UserError, match="unconditional"):
            plain.generator.draw(Request(Noise([1]), None, 4, 2.0))
        with pytest.raises(UserError, match="needs class_labels"):
            objective(name, 3).generator.draw(Request(Noise([1]), None, 4, 2.0))
