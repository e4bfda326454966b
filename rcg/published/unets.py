"""OpenAI's U-Net (guided-diffusion, and latent-diffusion after it) → diffusers' names for the same layers.

There, layers are numbered as they are run through; here, they lie in blocks, one a level. Both compute the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.state_dicts import nearest, numbered

FIXED = {
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.",
    "input_blocks.0.0.": "conv_in.",
    "middle_block.0.": "mid_block.resnets.0.",
    "middle_block.1.": "mid_block.attentions.0.",
    "middle_block.2.": "mid_block.resnets.1.",
    "out.0.": "conv_norm_out.",
    "out.2.": "conv_out.",
}
LAYERS = {  # of a residual block, an attention block, a resampling layer; a transformer block's are called alike
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
    "op.": "conv.",
}
ATTENTION = {"norm.": "group_norm.", "proj_out.": "to_out.0."}
NO_NULL = "the reference trained this model without a null {}, so it can be guided by a guiding model only."


@dataclass(frozen=True)
class Layout:
    """The sizes that a U-Net's tensors tell.

    Attributes:
        base: channels of the finest level.
        multipliers: width of each level, finest first, in units of `base`.
        num_res_blocks: residual blocks of a level on the way down.
        attends: for each level, whether attention follows its residual blocks.
        in_channels, out_channels: of the whole network.
    """

    base: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    attends: tuple[bool, ...]
    in_channels: int
    out_channels: int


def layout_of(state: Mapping[str, Tensor], source: str) -> Layout:
    """Read a U-Net's sizes off its keys and shapes.

    Args:
        state: the reference's names, without a prefix.
        source: what a message calls the file.

    Raises:
        UserError: a layer that tells a size is missing, or the layers make no whole levels.
    """
    try:
        base, in_channels = state["input_blocks.0.0.weight"].shape[:2]
        out_channels = state["out.2.weight"].shape[0]
        blocks = numbered(state, r"input_blocks\.(\d+)\.")
        upward = re.compile(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.0)\.weight")
        levels = 1 + sum(upward.fullmatch(key) is not None for key in state)
        period = blocks // levels
        firsts = [1 + period * level for level in range(levels)]
        widths = [state[f"input_blocks.{first}.0.out_layers.3.weight"].shape[0] for first in firsts]
    except KeyError as e:
        near = nearest(str(e.args[0]), state)
        raise UserError(f"{source} holds no U-Net of the reference: {e.args[0]} is missing{near}.") from None
    except ValueError:
        raise UserError(f"{source} holds no U-Net of the reference: its first layer is no convolution.") from None
    if blocks % levels or period < 2 or any(width % base for width in widths):
        raise UserError(
            f"{source} holds {blocks} input blocks in {levels} levels of {widths} channels, which is no U-Net of the "
            "reference; take a complete file."
        )
    attends = tuple(
        any(key.startswith(f"input_blocks.{first}.1.") for key in state if first < blocks) for first in firsts
    )
    return Layout(base, tuple(width // base for width in widths), period - 1, attends, in_channels, out_channels)


def image_size_of(layout: Layout, known: Mapping[tuple[int, ...], int], given: int | None, source: str) -> int:
    """Side in pixels of a U-Net's images: the one that is given, else the published model's of those multipliers.

    Raises:
        UserError: neither of them.
    """
    size = known.get(layout.multipliers) if given is None else given
    if size is None:
        raise UserError(
            f"{source} has levels of {layout.multipliers} times {layout.base} channels, which is none of the published "
            "sizes; add --generator-image-size."
        )
    return size


def _modules(layout: Layout) -> dict[str, str]:
    """Prefix of each numbered layer → prefix of ours."""
    levels, each = len(layout.multipliers), layout.num_res_blocks
    found, number = dict(FIXED), 1
    for level in range(levels):
        for i in range(each):
            found[f"input_blocks.{number}.0."] = f"down_blocks.{level}.resnets.{i}."
            found[f"input_blocks.{number}.1."] = f"down_blocks.{level}.attentions.{i}."
            number += 1
        found[f"input_blocks.{number}.0."] = f"down_blocks.{level}.downsamplers.0."
        number += 1
    number = 0
    for block, level in enumerate(reversed(range(levels))):
        for i in range(each + 1):
            found[f"output_blocks.{number}.0."] = f"up_blocks.{block}.resnets.{i}."
            place = 1
            if layout.attends[level]:
                found[f"output_blocks.{number}.1."] = f"up_blocks.{block}.attentions.{i}."
                place = 2
            if level and i == each:
                found[f"output_blocks.{number}.{place}."] = f"up_blocks.{block}.upsamplers.0."
            number += 1
    return found


def translate(
    state: Mapping[str, Tensor], layout: Layout, head_channels: int, source: str
) -> dict[str, dict[str, Tensor]]:
    """Give every tensor of a U-Net its name and shape in diffusers.

    Args:
        state: the reference's names, without a prefix.
        layout: of these.
        head_channels: width of an attention head; queries, keys and values of each lie together in the reference.
        source: what a message calls the file.

    Returns:
        Their name → our names and tensors; a name that is no layer's → nothing.

    Raises:
        UserError: attention whose width the heads do not divide.
    """
    modules = _modules(layout)
    made: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        theirs = next((prefix for prefix in modules if key.startswith(prefix)), None)
        if theirs is None:
            made[key] = {}
            continue
        ours, rest = modules[theirs], key.removeprefix(theirs)
        if "attentions" in ours and tensor.ndim == 3:  # a convolution over a sequence, of kernel size 1
            tensor = tensor[..., 0]
        if rest.startswith("qkv."):
            if len(tensor) % (3 * head_channels):
                raise UserError(
                    f"{source}: {key} has {len(tensor)} rows, which heads of {head_channels} do not divide into queries, "
                    "keys and values; it is no file of the published kind."
                )
            parts = tensor.view(-1, 3, head_channels, *tensor.shape[1:]).unbind(1)
            names = [f"{ours}to_{name}.{rest.removeprefix('qkv.')}" for name in "qkv"]
            made[key] = {name: part.flatten(0, 1) for name, part in zip(names, parts, strict=True)}
            continue
        plain = "attentions" in ours and f"{theirs}qkv.weight" in state
        for old, new in (ATTENTION if plain else LAYERS).items():
            if rest.startswith(old):
                rest = new + rest.removeprefix(old)
                break
        made[key] = {ours + rest: tensor}
    return made
