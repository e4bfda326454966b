"""LDM and its VQ autoencoder against the reference: outputs, the loss, a whole guided generation, pictures."""

from __future__ import annotations

import pytest
import torch

from rcg.image_gen.conditions import Guidance
from rcg.image_gen.diffusion.objective import DiffusionObjective
from rcg.image_gen.ldm.generator import LDMGenerator, default_scheduler
from rcg.image_gen.ldm.unet import LDMUNet
from rcg.image_gen.protocol import Request
from rcg.image_gen.tokenizers.autoencoder import LatentCodec
from rcg.published.latent_vq import convert_latent_vq
from rcg.published.ldm import convert_ldm
from rcg.published.options import Weights
from tests.golden.seeded import normal
from tests.image_gen.ldm import golden


def model_of(condition: str = "representation", weights: Weights = "raw") -> LDMUNet:
    return convert_ldm(golden.contents(condition), "ldm.pth", weights, golden.SIZE).model


@pytest.mark.parametrize("condition", ["representation", "class", "none"])
@torch.no_grad()
def test_outputs(condition: str) -> None:
    output = model_of(condition)(normal("x", 2, 4, 8, 8), torch.tensor([3, 870]), **golden.given(condition))
    assert golden.distance(output, golden.value(f"forward_{condition}")) < 1e-5


@torch.no_grad()
def test_loss() -> None:
    objective = DiffusionObjective(LDMGenerator(model_of(), default_scheduler()))
    batch = {"latents": normal("clean", 4, 4, 8, 8), "representations": normal("reps", 4, 12)}
    loss = objective(batch, torch.tensor([0, 1, 400, 999]), normal("noise", 4, 4, 8, 8))["loss"]
    assert loss.item() == pytest.approx(golden.value("loss").item(), rel=1e-5)


def test_a_whole_guided_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcg.image_gen.unets.BLOCK_VALUES", 64 * 2 * 8**2)
    model = model_of(weights="ema")
    model.register_to_config(condition_dropout=0.1)
    model.token_embed.null.data.copy_(normal("null", 1, 12))
    request = Request(
        golden.RecordedNoise(),  # type: ignore[arg-type]
        golden.given("representation")["representations"],
        None,
        num_inference_steps=golden.STEPS,
        temperature=None,
        guidance=Guidance(golden.SCALE),
        exact=True,
    )
    vq = convert_latent_vq(golden.contents(), "ldm.pth", golden.SIZE).model
    generator = LDMGenerator(model, default_scheduler(), vq)
    generator.check()
    codes = generator.generate(request)
    assert golden.distance(codes, golden.value("sample")) < 1e-4
    assert golden.distance(generator.decode(golden.value("sample")), golden.value("pictures")) < 1e-5


@torch.no_grad()
def test_latents() -> None:
    vq = convert_latent_vq(golden.contents(), "ldm.pth", golden.SIZE).model
    codec, images = LatentCodec(vq), (normal("images", 2, 3, 16, 16).div(2).clamp(-1, 1) + 1) / 2
    assert (codec.factor, codec.channels, codec.image_size) == (2, 4, golden.SIZE)
    assert golden.distance(codec.encode(images), golden.value("latents")) < 1e-5
