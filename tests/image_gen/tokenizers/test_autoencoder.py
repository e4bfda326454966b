"""Autoencoders of diffusers as tokenizers: scales, shapes, refusals, and files that diffusers once wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file

from rcg import VQTokenizer
from rcg.core.components import load_any, load_model
from rcg.core.errors import UserError
from rcg.image_gen.tokenizers.autoencoder import LatentCodec
from rcg.image_gen.tokenizers.codec import TOKENIZERS, codec_of
from tests.image_gen.latent_dit.models import autoencoder_kl, autoencoder_tiny


def images(count: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_latents_are_the_scaled_mean_of_the_posterior() -> None:
    model = autoencoder_kl(scaling_factor=0.5, shift_factor=0.25)
    codec = LatentCodec(model)
    posterior = model.encode(images() * 2 - 1).latent_dist
    latents = codec.encode(images())
    assert torch.allclose(latents, (posterior.mean - 0.25) * 0.5, atol=1e-6)
    assert torch.equal(latents, codec.encode(images()))
    decoded = model.decode(posterior.mean).sample
    assert torch.allclose(codec.decode(latents), (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5)
    each = LatentCodec(autoencoder_kl(scaling_factor=0.5, latents_mean=[0.0, 1, 2, 3], latents_std=[1.0, 2, 4, 8]))
    mean, std = (torch.tensor(v).view(1, 4, 1, 1) for v in ([0.0, 1, 2, 3], [1.0, 2, 4, 8]))
    assert torch.allclose(each.encode(images()), (posterior.mean - mean) * 0.5 / std, atol=1e-6)
    assert torch.allclose(each.decode(each.encode(images())), codec.decode(latents), atol=1e-5)


@torch.no_grad()
def test_the_tiny_autoencoder_is_the_same_to_us() -> None:
    model = autoencoder_tiny()
    codec = LatentCodec(model)
    assert (codec.factor, codec.channels, codec.image_size) == (4, 4, None)
    latents = codec.encode(images())
    assert torch.allclose(latents, model.encode(images() * 2 - 1).latents)
    assert torch.allclose(codec.decode(latents), (model.decode(latents).sample / 2 + 0.5).clamp(0, 1), atol=1e-6)


@torch.no_grad()
def test_precision_of_the_decoder() -> None:
    codec = LatentCodec(autoencoder_kl())
    latents = codec.encode(images())
    fp32, bf16 = (codec.decode(latents, precision) for precision in ("fp32", "bf16"))
    assert bf16.dtype == torch.float32
    assert not torch.equal(fp32, bf16)
    assert (fp32 - bf16).abs().max() < 0.1


def test_codecs_of_both_kinds() -> None:
    vq = codec_of(VQTokenizer(base_channels=8, channel_multipliers=(1, 1, 2), norm_groups=4, image_size=16, code_dim=4))
    kl = codec_of(autoencoder_kl(sample_size=[16, 16]))
    assert (vq.field, vq.factor, vq.image_size, vq.storage(True)) == ("tokens", 4, 16, "uint16")
    assert (kl.field, kl.factor, kl.image_size, kl.storage(True)) == ("latents", 2, 16, "float16")
    assert kl.storage(False) == "float32"
    with torch.no_grad():
        for codec in (vq, kl):
            assert codec.decode(codec.encode(images())).shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match="a Linear makes no latents"):
        codec_of(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.zeros(1, 3, 15, 16), "images of 16x15 pixels cannot be encoded: both sides must be multiples of 2"),
        (torch.zeros(1, 4, 16, 16), "takes float images"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "takes float images"),
    ],
)
def test_images_that_cannot_be(given: torch.Tensor, says: str) -> None:
    with pytest.raises(UserError, match=says):
        LatentCodec(autoencoder_kl()).encode(given)


def test_latents_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"takes float latents \[batch, 4, height, width\]"):
        LatentCodec(autoencoder_kl()).decode(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("make", [autoencoder_kl, autoencoder_tiny])
@torch.no_grad()
def test_saved_ones_load(make: Any, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    loaded = load_any(TOKENIZERS, tmp_path)
    assert type(loaded) in (AutoencoderKL, AutoencoderTiny)
    assert torch.allclose(codec_of(loaded).encode(images()), codec_of(model).encode(images()), atol=1e-6)


def test_old_names_of_attention_load_too(tmp_path: Path) -> None:
    model = autoencoder_kl()
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    renamed = {}
    for key, tensor in state.items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        renamed[key] = tensor
    assert renamed.keys() != state.keys()
    save_file(renamed, file)
    loaded = load_model(AutoencoderKL, tmp_path)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def _edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"latent_channels": 3}, "differ in shape"),
        ({"layers_per_block": 10**9}, "layers_per_block is 1000000000, but it must be at most 65536"),
        ({"block_out_channels": [8, -1]}, "block_out_channels is -1"),
        ({"norm_num_groups": 5}, "no AutoencoderKL can be made of it"),
        ({"down_block_types": ["NoBlock", "NoBlock"]}, "no AutoencoderKL can be made of it"),
        (
            {"_class_name": "UNet2DModel"},
            "holds a UNet2DModel, but a VQTokenizer or AutoencoderKL or AutoencoderTiny or VQModel is needed",
        ),
    ],
)
def test_folders_that_are_damaged(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    autoencoder_kl().save_pretrained(tmp_path)
    _edit(tmp_path, **changes)
    with pytest.raises(UserError, match=says):
        load_any(TOKENIZERS, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"scaling_factor": 0.0},
        {"scaling_factor": float("nan")},
        {"latents_mean": [0.0, 0, 0, 0], "latents_std": [1.0, 1, 1, -1]},
        {"latents_mean": [0.0, 0, 0], "latents_std": [1.0, 1, 1]},
        {"latents_mean": 1.5, "latents_std": 1.5},
    ],
)
def test_scales_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no number for each of their 4 channels, or not positive"):
        LatentCodec(autoencoder_kl(**changes))


def test_which_images_are_not_rgb_is_said() -> None:
    with pytest.raises(UserError, match="takes images of 3 channels and makes ones of 1, but RGB ones are needed"):
        LatentCodec(autoencoder_kl(out_channels=1))


def test_an_image_size_that_is_none() -> None:
    assert LatentCodec(autoencoder_kl(sample_size=0)).image_size is None
