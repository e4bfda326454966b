"""diffusers' U-Nets done the quick way compute what they do untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from rcg.image_gen.unets import make_quick


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
