"""Sampling and training of LDM: one image whatever its batch, quantised decoding, what a pipeline asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rcg.core.errors import UserError
from rcg.image_gen.conditions import Guidance
from rcg.image_gen.diffusion.objective import DiffusionObjective
from rcg.image_gen.ldm.generator import LDMGenerator, default_scheduler, paper_scheduler
from rcg.image_gen.tokenizers.autoencoder import LatentCodec
from tests.image_gen.adm.models import CONDITIONS
from tests.image_gen.adm.test_sampling import request
from tests.image_gen.ldm.models import autoencoder, batch, tiny


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("exact", [False, True])
def test_an_image_does_not_depend_on_its_batch(condition: str, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcg.image_gen.unets.BLOCK_VALUES", 64 * 32)  # two images a block
    generator = LDMGenerator(tiny(condition), default_scheduler(), autoencoder())
    settings: dict[str, Any] = {"exact": exact, "num_inference_steps": 4}
    if condition != "none":
        settings["guidance"] = Guidance(2.0)
    seen: list[tuple[int, torch.Tensor]] = []
    whole = generator.generate(request(3, condition, **settings, callback=lambda i, codes: seen.append((i, codes))))
    assert whole.shape == (3, 4, 4, 4)
    assert [i for i, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(generator.generate(request(1, condition, 2, **settings)), whole[2:])
    images = generator.decode(whole)
    assert images.shape == (3, 3, 8, 8)
    assert torch.equal(generator.decode(whole[2:]), images[2:])


def test_exact_sampling_adds_noise_and_the_quick_way_none() -> None:
    generator = LDMGenerator(tiny("none", stirred=False), default_scheduler())  # predicts no noise: x is only scaled
    quick = generator.generate(request(1, num_inference_steps=4))
    start = request(1).noise.normal(0, 64).view(1, 4, 4, 4)
    assert torch.allclose(quick / start, (quick / start).flatten()[0].expand_as(start), rtol=1e-4)
    exact = generator.generate(request(1, num_inference_steps=4, exact=True))
    assert (exact / start).std() > 0.1 * (exact / start).abs().mean()


def test_exact_sampling_keeps_the_models_noise_schedule() -> None:
    changed = type(default_scheduler()).from_config(default_scheduler().config, beta_end=0.03)
    own, other = (
        LDMGenerator(tiny("none"), scheduler).generate(request(1, num_inference_steps=4, exact=True))
        for scheduler in (default_scheduler(), changed)
    )
    assert not torch.allclose(own, other)
    assert paper_scheduler(changed.config).config.beta_end == 0.03


def test_exact_sampling_is_not_told_to_take_another_solver() -> None:
    generator = LDMGenerator(tiny("none"), default_scheduler())
    says = "cannot make 30 steps, because they do not divide 1000; use 25 or 40, or, unless sampling is exact, a solver"
    with pytest.raises(UserError, match=says):
        generator.generate(request(1, num_inference_steps=30, exact=True))


@torch.no_grad()
def test_latents_are_quantised_as_they_are_decoded() -> None:
    vq = autoencoder()
    codec, latents = LatentCodec(vq), torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    near = latents + 1e-4
    nearest = vq.quantize(latents)[0]
    assert torch.allclose(codec.decode(latents), codec.decode(nearest), atol=1e-5)
    assert torch.allclose(codec.decode(latents), codec.decode(near), atol=1e-5)
    expected = (vq.decode(latents).sample + 1) / 2
    assert torch.allclose(codec.decode(latents), expected.clamp(0, 1), atol=1e-6)
    half = codec.decode(latents, "bf16")
    assert (half - codec.decode(latents)).abs().max() < 0.1  # the same codes, decoded in bf16


def test_what_a_pipeline_asks_of_the_generator() -> None:
    generator = LDMGenerator(tiny("class"), default_scheduler(), autoencoder())
    assert (generator.condition, generator.num_classes, generator.field, generator.exact_steps) == (
        "class",
        3,
        "latents",
        200,
    )
    assert generator.guidable
    assert generator.decodable
    generator.check()
    with pytest.raises(UserError, match="give the autoencoder"):
        LDMGenerator(tiny(), default_scheduler()).check()
    with pytest.raises(UserError, match="latents of 3 channels, but the autoencoder takes 4"):
        LDMGenerator(tiny(in_channels=3), default_scheduler(), autoencoder()).check()


def test_autoencoders_that_have_no_latents() -> None:
    vq = autoencoder()
    vq.register_to_config(lookup_from_codebook=True)
    with pytest.raises(UserError, match="decodes numbers of codes"):
        LatentCodec(vq)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_loss_and_figures(condition: str) -> None:
    objective = DiffusionObjective(LDMGenerator(tiny(condition, stirred=False), default_scheduler(), autoencoder()))
    parts = objective(batch(condition, 4))
    assert parts.keys() == {"loss", "noise_error"}
    assert parts["loss"].item() == pytest.approx(1, abs=0.3)  # of a model that finds no noise
    parts["loss"].backward()
    figures = objective.evaluate(batch(condition, 4), 0)
    assert ("noise_error_unconditional" in figures) == (condition != "none")
    objective.check_codes(objective.encode(torch.rand(2, 3, 8, 8)))
    assert objective.identity() == {"noise": [1000, "scaled_linear", 0.0015, 0.0195]}
