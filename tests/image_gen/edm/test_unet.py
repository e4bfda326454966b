"""EDM's U-Net: its preconditioning and loss against the paper's formulas and diffusers' own, conditions, the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler

from rcg import RCGPipeline
from rcg.core.errors import UserError
from rcg.core.flow import flow_scheduler
from rcg.image_gen.conditions import Guidance
from rcg.image_gen.edm.objective import EDMObjective
from rcg.image_gen.edm.recipe import EDMRecipe
from rcg.image_gen.edm.unet import EDMUNet
from rcg.image_gen.pixels.sampling import sample_images
from rcg.image_gen.protocol import Task
from rcg.scripts import assemble, cache, train_generator

TINY: dict[str, Any] = {"image_size": 8, "channels": (32, 32), "layers": 1, "attention_size": 4, "dropout": 0.0}
CONDITIONS: dict[str, dict[str, Any]] = {
    "representation": {"representation_dim": 6},
    "cluster": {"num_classes": 3},
    "none": {},
}


def tiny(condition: str = "none", **changes: Any) -> EDMUNet:
    torch.manual_seed(0)
    model = EDMUNet(**{**TINY, "condition": condition, **CONDITIONS[condition], **changes}).eval()
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    if model.condition_embed is not None:  # so that it matters
        for parameter in model.condition_embed.parameters():
            torch.nn.init.normal_(parameter, std=3.0)
    return model


def given(condition: str, count: int) -> dict[str, torch.Tensor]:
    if condition == "representation":
        return {"representations": torch.randn(count, 6, generator=torch.Generator().manual_seed(1))}
    return {"class_labels": torch.arange(count) % 3} if condition == "cluster" else {}


def test_groups_of_the_norms_divide_all_widths() -> None:
    for channels, groups in {(32, 32): 8, (64, 96): 16, (96, 128): 8, (128, 256): 32}.items():
        assert tiny(channels=channels).unet.conv_norm_out.num_groups == groups


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_preconditioning_is_edms(condition: str) -> None:
    """D(y; σ) with diffusers' c_in, c_skip and c_out around the bare network, for noise levels from small to large."""
    model, y = tiny(condition), torch.randn(5, 3, 8, 8)
    sigmas = torch.tensor([0.01, 0.3, 1.0, 5.0, 70.0])
    edm = EDMDPMSolverMultistepScheduler(sigma_data=0.5)
    y = y * (sigmas[:, None, None, None] ** 2 + 0.25).sqrt()
    times = 1 / (1 + sigmas)
    ours = model(y * times[:, None, None, None], times, **given(condition, 5))
    embed, arguments = model.condition_embed, given(condition, 5)
    for i, sigma in enumerate(sigmas):
        vector = None if embed is None else embed(next(iter(arguments.values()))[i : i + 1], 1, None)
        inputs = edm.precondition_inputs(y[i : i + 1], sigma)
        output = model.unet(inputs, 1000 * sigma.log() / 4, class_labels=vector).sample
        theirs = edm.precondition_outputs(y[i : i + 1], output, sigma)
        torch.testing.assert_close(ours[i : i + 1], theirs, rtol=1e-3, atol=1e-4)


def test_the_loss_is_edms() -> None:
    model, generator = tiny(), torch.Generator().manual_seed(0)
    objective = EDMObjective(model)
    images = torch.randint(256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    noise, sigmas = torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0.05, 0.5, 2.0, 20.0])
    ours = objective({"images": images}, times=1 / (1 + sigmas), noise=noise)["loss"]
    clean, s = images.float() / 127.5 - 1, sigmas[:, None, None, None]
    times = 1 / (1 + sigmas)
    denoised = model((clean + s * noise) * times[:, None, None, None], times)
    weight = (s**2 + 0.25) / (s * 0.5) ** 2
    torch.testing.assert_close(ours, (weight * (denoised - clean) ** 2).mean(), rtol=1e-3, atol=1e-5)
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    logs = torch.log((1 - objective.times(quantiles)) / objective.times(quantiles))
    torch.testing.assert_close(logs, -1.2 - 1.2 * torch.special.ndtri(quantiles), rtol=1e-4, atol=1e-4)


def test_a_new_model_knows_nothing_but_the_noise() -> None:
    """Its output layer is 0: D = c_skip · y, the best guess for data of mean 0 and standard deviation σ_data."""
    model = EDMUNet(**TINY, condition="none")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x, 0.5), 0.25 * 0.5 / (0.25 + 0.0625) * x)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_condition_matters_and_an_image_is_its_own(condition: str) -> None:
    model, noise = tiny(condition), torch.randn(3, 3, 8, 8)
    common: dict[str, Any] = {"num_inference_steps": 3, **given(condition, 3)}
    whole = sample_images(model, flow_scheduler(), noise, **common)
    one = {k: v[1:2] for k, v in given(condition, 3).items()}
    alone = sample_images(model, flow_scheduler(), noise[1:2], num_inference_steps=3, **one)
    assert torch.equal(whole[1:2], alone)
    if condition != "none":
        assert not torch.allclose(whole, sample_images(model, flow_scheduler(), noise, num_inference_steps=3))
        guided = sample_images(model, flow_scheduler(), noise, **common, guidance=Guidance(3.0))
        assert not torch.allclose(guided, whole, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"channels": (32, 48)}, "48 channels.*multiple of 32"),
        ({"channels": (32, 32, 32, 32, 32)}, "cannot be halved 4 times"),
        ({"channels": ()}, "channels is empty"),
        ({"condition": "cluster"}, "needs num_classes"),
    ],
)
def test_sizes_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        EDMUNet(**{**TINY, "condition": "none", **changes})


def test_from_cache_to_pictures(tmp_path: Path) -> None:
    data = str(tmp_path / "cache")
    cache.main(["--data", "shapes:n=24,size=8", "--image-size", "8", "--images", "--out", data])
    small = ["--arch", "edm", "--channels", "32", "32", "--layers", "1", "--attention-size", "4", "--batch-size", "4"]
    run = ["--data", data, "--condition", "class", "--steps", "2", "--lr", "1e-3", "--held-out", "2", "--device", "cpu"]
    train_generator.main([*run, *small, "--out", str(tmp_path / "generator")])
    assemble.main(["--generator", str(tmp_path / "generator"), "--out", str(tmp_path / "model")])
    pipe = RCGPipeline.from_pretrained(tmp_path / "model")
    assert isinstance(pipe.image_generator, EDMUNet)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(class_labels=[0, 1], guidance_scale=2.0, num_inference_steps=2, output_type="pt").images
    assert images.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("side", "channels", "asked", "attended"),
    [(32, 3, None, 16), (28, 3, None, 14), (96, 3, None, 24), (8, 2, None, 8), (32, 3, 8, 8), (28, 3, 0, 0)],
)
def test_a_new_model_attends_where_it_can(side: int, channels: int, asked: int | None, attended: int) -> None:
    recipe = EDMRecipe(channels=(32,) * channels, layers=1, attention_size=asked)
    model = recipe.objective(Task("none", (3, side, side))).model
    assert model.config.attention_size == attended
    below = ["Attn" in type(block).__name__ for block in model.unet.down_blocks]
    assert below == [side // 2**i == attended for i in range(channels)]


def test_attention_where_there_is_no_such_map_is_refused() -> None:
    with pytest.raises(UserError, match="--attention-size is 16, but the resolutions have sides 28, 14, 7; choose one"):
        EDMRecipe(channels=(32, 32, 32), attention_size=16).objective(Task("none", (3, 28, 28)))
    assert (
        EDMUNet(28, channels=(32, 32, 32), layers=1, condition="none").config.attention_size == 16
    )  # as saved ones have it
