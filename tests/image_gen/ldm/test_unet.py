"""The U-Net: its start at zero, conditions as tokens, refusals, precision, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rcg.core.components import load_model
from rcg.core.errors import UserError
from rcg.core.precision import in_precision
from rcg.image_gen.ldm.unet import LDMUNet
from tests.image_gen.adm.models import CONDITIONS, given
from tests.image_gen.ldm.golden import distance
from tests.image_gen.ldm.models import tiny


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_a_new_model_predicts_zero(condition: str) -> None:
    model = tiny(condition, stirred=False)
    assert not model(torch.randn(3, 4, 4, 4), torch.tensor([0, 500, 999]), **given(condition, 3)).any()
    zeros = [p for n, p in model.named_parameters() if "conv2" in n or n.endswith(("proj_out.weight", "proj_out.bias"))]
    assert len(zeros) > 8
    assert not any(p.any() for p in zeros)


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_time_and_condition_matter_sample_by_sample(condition: str) -> None:
    model, x = tiny(condition), torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    at_half = model(x, 500, **given(condition, 3))
    assert at_half.shape == x.shape
    mixed = model(x, torch.tensor([500, 530, 500]), **given(condition, 3))
    assert torch.allclose(mixed[[0, 2]], at_half[[0, 2]], atol=1e-5)
    assert not torch.allclose(mixed[1], at_half[1], atol=1e-3)
    if condition != "none":
        dropped = model(x, 500, **given(condition, 3), drop_condition=torch.tensor([False, True, False]))
        assert torch.allclose(dropped[[0, 2]], at_half[[0, 2]], atol=1e-5)
        assert torch.allclose(dropped[1], model(x, 500)[1], atol=1e-5)
        assert not torch.allclose(dropped[1], at_half[1], atol=1e-3)


def test_a_representation_is_its_own_token() -> None:
    assert tiny("representation").unet.config.cross_attention_dim == 6
    assert tiny("class").unet.config.cross_attention_dim == 10
    assert tuple(tiny("none").token_embed.weight.shape) == (1, 10)
    assert tuple(tiny("class").token_embed.weight.shape) == (4, 10)
    assert tuple(tiny("class", condition_dropout=0.0).token_embed.weight.shape) == (3, 10)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sample_size": 5}, "the latents' side is 5, which 2 levels do not halve evenly"),
        ({"base_channels": 48}, "base_channels is 48, which 32 norm_groups do not divide"),
        ({"head_channels": 24}, "base_channels is 32, which head_channels 24 does not divide"),
        ({"channel_multipliers": (2, 4)}, "it must begin with 1"),
        ({"condition": "text"}, "condition is 'text'"),
        ({"representation_dim": None}, "needs representation_dim"),
        ({"condition": "class", "num_classes": None}, "needs num_classes"),
    ],
)
def test_models_that_cannot_be(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tiny(**{"condition": "representation", **arguments})


@pytest.mark.parametrize(
    ("condition", "arguments", "says"),
    [
        ("none", given("representation", 2), "representations were given"),
        ("class", {"class_labels": torch.zeros(2, 1, dtype=torch.int64)}, r"class labels have shape \(2, 1\)"),
        ("none", {"sample": torch.zeros(2, 3, 4, 4)}, r"shape \[2, 3, 4, 4\], but this generator needs \[B, 4, 4, 4\]"),
    ],
)
def test_inputs_that_do_not_fit(condition: str, arguments: dict[str, torch.Tensor], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tiny(condition)(**{"sample": torch.zeros(2, 4, 4, 4), "timestep": 5, **arguments})


@torch.no_grad()
def test_bf16_is_near() -> None:
    model, x = tiny(), torch.randn(2, 4, 4, 4)
    half = in_precision(model, "bf16")
    assert half.unet.conv_in.weight.dtype == torch.bfloat16
    assert half.token_embed.null.dtype == torch.float32
    assert distance(half(x, 500, **given("representation", 2)), model(x, 500, **given("representation", 2))) < 0.03


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path) -> None:
    model, x = tiny("class", label_counts=[1, 2, 3]), torch.randn(2, 4, 4, 4)
    model.save_pretrained(tmp_path)
    loaded = load_model(LDMUNet, tmp_path)
    assert loaded.config.label_counts == [1, 2, 3]
    assert torch.equal(loaded(x, 5, **given("class", 2)), model(x, 5, **given("class", 2)))
