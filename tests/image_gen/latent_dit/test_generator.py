"""What a pipeline asks of the generator, and whole pipelines with autoencoders of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers.pipelines
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler

from rcg import RCGPipeline, VQTokenizer
from rcg.core.errors import UserError
from rcg.image_gen.diffusion.generator import default_scheduler
from rcg.image_gen.families import MODELS
from rcg.image_gen.latent_dit.generator import DiTGenerator
from tests.image_gen.latent_dit.models import CONDITIONS, autoencoder_kl, autoencoder_tiny, given, tiny


def test_what_a_pipeline_asks_of_the_generator() -> None:
    generator = DiTGenerator(tiny("class"), default_scheduler(), autoencoder_kl())
    assert (generator.condition, generator.num_classes, generator.representation_dim) == ("class", 3, None)
    assert generator.guidable
    assert generator.decodable
    assert not DiTGenerator(tiny(), default_scheduler()).decodable
    generator.check()
    defaults = generator.defaults()
    assert defaults["num_inference_steps"] == 25
    assert generator.exact_steps == 250
    generator.check_settings(defaults)
    with pytest.raises(UserError, match="has no temperature"):
        generator.check_settings({**defaults, "temperature": 1.0})
    with pytest.raises(UserError, match="num_inference_steps is 1001"):
        generator.check_settings({**defaults, "num_inference_steps": 1001})


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"tokenizer": None}, "makes latents; give the autoencoder"),
        ({"tokenizer": autoencoder_kl(latent_channels=3)}, "makes latents of 4 channels, but the autoencoder takes 3"),
        ({"tokenizer": autoencoder_kl(out_channels=4)}, "RGB ones are needed"),
        ({"tokenizer": VQTokenizer(base_channels=8, norm_groups=4)}, "a VQTokenizer makes no latents"),
        ({"scheduler": DDIMScheduler(prediction_type="sample")}, "takes no predicted noise"),
    ],
)
def test_parts_that_do_not_belong_together(parts: dict[str, Any], says: str) -> None:
    whole = {"model": tiny(), "scheduler": default_scheduler(), "tokenizer": autoencoder_kl(), **parts}
    with pytest.raises(UserError, match=says):
        DiTGenerator(**whole).check()


def test_decoding_without_an_autoencoder() -> None:
    with pytest.raises(UserError, match="no autoencoder to decode"):
        DiTGenerator(tiny(), default_scheduler()).decode(torch.zeros(1, 4, 8, 8))


def pipeline(condition: str = "none", tokenizer: Any = None, **parts: Any) -> RCGPipeline:
    pipe = RCGPipeline(tiny(condition), default_scheduler(), tokenizer or autoencoder_kl(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: RCGPipeline, count: int = 3, **settings: Any) -> torch.Tensor:
    settings = {"num_inference_steps": 3, "precision": "fp32", **settings}
    return pipe(count, generator=torch.Generator().manual_seed(3), output_type="pt", **settings).images


@pytest.mark.parametrize("make", [autoencoder_kl, autoencoder_tiny])
def test_a_saved_pipeline_draws_the_same(make: Any, tmp_path: Path) -> None:
    pipe = pipeline("class", make())
    images = draw(pipe, guidance_scale=2.0)
    assert images.shape == (3, 3, *[8 * pipe_factor(pipe)] * 2)
    assert images.std() > 0.01
    pipe.save_pretrained(tmp_path)
    loaded = RCGPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.tokenizer, AutoencoderKL | AutoencoderTiny)
    assert type(loaded.tokenizer) is type(pipe.tokenizer)
    loaded.set_progress_bar_config(disable=True)
    assert torch.allclose(draw(loaded, guidance_scale=2.0), images, atol=1e-6)
    assert loaded.identity() == pipe.identity()


def pipe_factor(pipe: RCGPipeline) -> int:
    return 2 if isinstance(pipe.tokenizer, AutoencoderKL) else 4


def test_images_do_not_depend_on_their_batch() -> None:
    pipe = pipeline("class")
    assert torch.equal(draw(pipe, 1)[0], draw(pipe, 3)[0])


def test_steps_of_exact_sampling_are_the_papers_unless_given() -> None:
    pipe, seen = pipeline(), list[int]()
    counted = {"callback_on_step_end": lambda _pipe, _step, total, _codes: seen.append(total)}
    assert pipe.settings(exact=True)["num_inference_steps"] == 250
    assert pipe.settings()["num_inference_steps"] == 25
    pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=4, exact=True, **counted)
    assert seen == [4] * 4
    assert not torch.allclose(draw(pipe, exact=True), draw(pipe), atol=1e-3)


def test_given_representations_and_autoguidance() -> None:
    pipe = pipeline("representation", guiding_model=tiny(seed=1))
    reps = given("representation", 2)["representations"]
    one, other = (draw(pipe, 2, representations=reps, guidance_scale=scale) for scale in (1.0, 2.0))
    assert not torch.allclose(one, other, atol=1e-4)
    with pytest.raises(UserError, match="the guiding model has sample_size 4, but the image generator 8"):
        pipeline("representation", guiding_model=tiny(sample_size=4))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_bf16_images_are_near(condition: str) -> None:
    pipe, shown = pipeline(condition), given(condition, 2)
    images = [draw(pipe, 2, precision=precision, **shown) for precision in ("fp32", "bf16")]
    assert (images[0] - images[1]).abs().mean() < 0.03


def test_no_room_is_called_like_a_pipeline_of_diffusers() -> None:
    for model in MODELS:
        room = model.__module__.split(".")[-2]
        assert not hasattr(diffusers.pipelines, room), room
