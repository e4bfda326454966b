"""diffusers' U-Nets done the quick way compute what they do untouched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from rcg.image_gen.protocol import Task
from rcg.image_gen.recipes import RECIPES
from rcg.image_gen.unets import make_quick, norm_groups


def unets() -> list[tuple[nn.Module, tuple[Tensor, ...]]]:
    """A U-Net with self-attention and one with cross-attention, and what they are called with."""
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
    pixels = UNet2DModel(
        **sizes, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8, add_attention=True,
    )  # fmt: skip
    latents = UNet2DConditionModel(
        **sizes, in_channels=3, out_channels=3, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2, cross_attention_dim=12,
    )  # fmt: skip
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 40])
    return [(pixels, (x, t)), (latents, (x, t, torch.randn(2, 4, 12)))]


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-4), (True, 0.1)])
@pytest.mark.parametrize("which", [0, 1])
def test_the_same_is_computed(which: int, bf16: bool, tolerance: float) -> None:
    model, given = unets()[which]
    quick = copy.deepcopy(model)
    make_quick(quick)
    attentions = [module for module in quick.modules() if isinstance(module, Attention)]
    assert attentions
    assert all(type(module.processor) is not AttnProcessor2_0 for module in attentions)
    outputs = []
    for unet in (model, quick):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = unet(*given, return_dict=False)[0].float()
        output.square().mean().backward()
        outputs.append(output)
    assert outputs[1].shape == given[0].shape
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=tolerance)
    for (name, plain), ours in zip(model.named_parameters(), quick.parameters(), strict=True):
        if plain.grad is not None and plain.grad.norm() > 1e-3:
            assert ours.grad is not None
            assert (plain.grad - ours.grad).norm() < 2 * tolerance * plain.grad.norm() + 1e-3, name


def test_maps_stay_contiguous() -> None:
    """Channels-last ones, which diffusers' attention leaves, make norms slow on CPUs."""
    model, given = unets()[0]
    make_quick(model)
    found: list[bool] = []
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, x: found.append(x[0].ndim == 3 or x[0].is_contiguous()))
    with torch.autocast("cpu", torch.bfloat16):
        model(*given)
    assert len(found) > 8
    assert all(found)


@pytest.mark.parametrize(
    ("widths", "groups"),
    [([256, 1024], 32), ([128], 32), ([64, 128], 16), ([32], 8), ([48, 96], 12), ([2], 1), ([3], 1)],
)
def test_groups_of_norms_have_four_channels_or_more(widths: list[int], groups: int) -> None:
    assert norm_groups(widths) == groups


@pytest.mark.parametrize(("name", "shape"), [("adm", (3, 16, 16)), ("ldm", (4, 16, 16))])
def test_a_new_narrow_model_sees_the_colour_of_an_image(name: Any, shape: tuple[int, ...]) -> None:
    """Behind norms of one channel each, an image and a brighter one look alike but for their edges."""

    def change(**groups: int) -> float:
        torch.manual_seed(0)
        recipe = RECIPES[name](base_channels=32, head_channels=32, channel_multipliers=(1,), **groups)
        model = recipe.objective(Task("none", shape)).model
        nn.init.normal_(model.unet.conv_out.weight)
        x = torch.randn(1, *shape)
        with torch.no_grad():
            return float((model(x + 0.5, 500.0) - model(x, 500.0))[..., 4:-4, 4:-4].abs().mean())

    assert change() > 4 * change(norm_groups=32)
