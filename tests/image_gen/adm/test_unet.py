"""The U-Net: its start at zero, conditions, refusals, precision, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rcg.core.components import load_model
from rcg.core.errors import UserError
from rcg.core.precision import in_precision
from rcg.image_gen.adm.unet import ADMUNet
from tests.image_gen.adm.golden import distance
from tests.image_gen.adm.models import CONDITIONS, given, tiny


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_a_new_model_predicts_zero_and_knows_nothing_of_its_condition(condition: str) -> None:
    model = tiny(condition, stirred=False)
    assert not model(torch.randn(3, 3, 8, 8), torch.tensor([0, 500, 999]), **given(condition, 3)).any()
    assert sum(p.count_nonzero() for n, p in model.named_parameters() if "conv2" in n or "to_out" in n) == 0
    if condition == "representation":
        assert not model.condition_embed.proj.weight.any()
        assert model.condition_embed.null.any()


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_time_and_condition_matter_sample_by_sample(condition: str) -> None:
    model, x = tiny(condition), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    at_half = model(x, 500, **given(condition, 3))
    assert at_half.shape == (3, 6, 8, 8)
    mixed = model(x, torch.tensor([500, 530, 500]), **given(condition, 3))
    assert torch.allclose(mixed[[0, 2]], at_half[[0, 2]], atol=1e-5)
    assert not torch.allclose(mixed[1], at_half[1], atol=1e-3)
    assert torch.allclose(model(x, 500.0, **given(condition, 3)), at_half, atol=1e-5)
    if condition != "none":
        dropped = model(x, 500, **given(condition, 3), drop_condition=torch.tensor([False, True, False]))
        assert torch.allclose(dropped[[0, 2]], at_half[[0, 2]], atol=1e-5)
        assert torch.allclose(dropped[1], model(x, 500)[1], atol=1e-5)
        assert not torch.allclose(dropped[1], at_half[1], atol=1e-3)


def test_attention_is_where_it_was_asked_for() -> None:
    for sides, found in (((), []), ((4,), [4]), ((8, 4), [8, 4])):
        model = tiny(attention_resolutions=sides)
        named = {n.split(".")[2] for n, _ in model.named_parameters() if "unet.down_blocks" in n and "attentions" in n}
        assert sorted({"0": 8, "1": 4}[level] for level in named) == sorted(found)
        assert any("mid_block.attentions" in n for n, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sample_size": 9}, "sample_size is 9, which 2 levels do not halve evenly"),
        ({"base_channels": 48}, "base_channels is 48, which 32 norm_groups do not divide"),
        ({"channel_multipliers": (2, 4)}, "it must begin with 1"),
        ({"channel_multipliers": ()}, "it must begin with 1"),
        ({"attention_resolutions": (4, 16)}, "attention_resolutions holds 16, but the levels have sides 8, 4"),
        ({"head_channels": 48}, "head_channels is 48, which does not divide the 64 channels"),
        ({"dropout": 1.0}, r"dropout is 1.0, but it must lie in \[0, 1\)"),
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
        ("representation", given("representation", 3), r"representations have shape \(3, 6\).* needs \(2, 6\)"),
        ("none", {"sample": torch.zeros(2, 3, 8, 9)}, r"shape \[2, 3, 8, 9\], but this generator needs \[B, 3, 8, 8\]"),
    ],
)
def test_inputs_that_do_not_fit(condition: str, arguments: dict[str, torch.Tensor], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tiny(condition)(**{"sample": torch.zeros(2, 3, 8, 8), "timestep": 5, **arguments})


@torch.no_grad()
def test_bf16_is_near() -> None:
    model, x = tiny(), torch.randn(2, 3, 8, 8)
    half = in_precision(model, "bf16")
    assert half.unet.conv_in.weight.dtype == torch.bfloat16
    assert half.condition_embed.proj.weight.dtype == torch.float32
    assert distance(half(x, 500, **given("representation", 2)), model(x, 500, **given("representation", 2))) < 0.03


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path) -> None:
    model, x = tiny("class", label_counts=[1, 2, 3]), torch.randn(2, 3, 8, 8)
    model.save_pretrained(tmp_path)
    loaded = load_model(ADMUNet, tmp_path)
    assert loaded.config.label_counts == [1, 2, 3]
    assert torch.equal(loaded(x, 5, **given("class", 2)), model(x, 5, **given("class", 2)))
