"""VQ autoencoders of latent diffusion (CompVis: VQ-f8 and its like) → diffusers' `VQModel`, with every key accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from diffusers import VQModel
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.state_dicts import (
    Conversion,
    build_filled,
    nearest,
    numbered,
    some,
    weights_under,
    widened,
    without_wrapper,
)

CARRIED = "first_stage_model."  # under which LDM files hold their autoencoder
NORM_GROUPS = 32  # of the published network; no tensor's shape tells
IMAGE_SIZE = 256
"""Side of the images that the published ones were trained on."""
LEVEL = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(block\.(\d+)|attn\.(\d+)|downsample|upsample)\.(.*)")
LAYERS = {
    r"mid\.block_1\.": "mid_block.resnets.0.",
    r"mid\.block_2\.": "mid_block.resnets.1.",
    r"mid\.attn_1\.": "mid_block.attentions.0.",
    r"(?<=oder\.)norm_out\.": "conv_norm_out.",
    r"nin_shortcut\.": "conv_shortcut.",
    r"(?<=attentions\.\d\.)norm\.": "group_norm.",
    r"(?<=attentions\.\d\.)([qkv])\.": r"to_\1.",
    r"(?<=attentions\.\d\.)proj_out\.": "to_out.0.",
}


def convert_latent_vq(contents: Mapping[str, Any], source: str, image_size: int | None = None) -> Conversion[VQModel]:
    """Read the autoencoder out of its own file, or out of an LDM file.

    Args:
        contents: what `rcg.core.state_dicts.read_checkpoint` gave: weights under `state_dict`, `model` or nothing, or
            `first_stage_model.*` among them.
        source: what a message calls the file.
        image_size: side in pixels of the images that it was trained on; None is the published 256.

    Returns:
        The autoencoder in eval mode (fp32), its sizes inferred from the tensors; and what became of each key. Latents are
        not scaled, as in the reference.

    Raises:
        UserError: no autoencoder in the file, or a key missing, unexpected or of another shape than its fellows.
    """
    what = f"{source} holds no VQ autoencoder; give the file of one, or of an LDM"
    state, wrapper = without_wrapper(weights_under(contents, ["state_dict", "model"], what, bare=True))
    dropped: dict[str, str] = {}
    if any(key.startswith(CARRIED) for key in state):
        dropped = {wrapper + k: "no part of the autoencoder" for k in state if not k.startswith(CARRIED)}
        wrapper += CARRIED
        state = {k.removeprefix(CARRIED): v for k, v in state.items() if k.startswith(CARRIED)}
    losses = [key for key in state if key.startswith("loss.")]
    dropped |= {wrapper + key: "of use in training only" for key in losses}
    state = {key: tensor for key, tensor in state.items() if key not in losses}
    config = _config(state, source)
    names = names_of(state)
    if len(set(names.values())) < len(names):
        raise UserError(f"{source} names {some(names)} twice; take another file.")
    notes: list[str] = []
    linear = {
        ours: state[key][..., 0, 0] if "attentions" in ours and state[key].ndim == 4 else state[key]
        for key, ours in names.items()
    }
    model = build_filled(
        lambda: VQModel(**config, sample_size=image_size or IMAGE_SIZE),
        widened(linear, notes),
        f"the autoencoder in {source}",
    )
    return Conversion(model, "latent-vq", {wrapper + key: ours for key, ours in names.items()}, dropped, notes)


def factor_of(state: Mapping[str, Tensor]) -> int:
    """How much the autoencoder that an LDM file carries shrinks images; 8, the published one's, if there is none."""
    levels = numbered(state, re.escape(CARRIED) + r"encoder\.down\.(\d+)\.")
    return 2 ** (levels - 1) if levels else 8


def names_of(state: Iterable[str]) -> dict[str, str]:
    """The reference's name of each tensor of an autoencoder → diffusers'."""
    levels = _levels(state)
    return {key: _renamed(key, levels) for key in state}


def _levels(state: Iterable[str]) -> int:
    return max(1, numbered(state, r"encoder\.down\.(\d+)\."))


def _renamed(key: str, levels: int) -> str:
    """Our name of the reference's layer: its decoder counts levels from the finest, diffusers' from the coarsest."""
    if (match := LEVEL.fullmatch(key)) is not None:
        side, level, layer, block, attention, rest = match.groups()
        place = int(level) if side == "encoder.down" else levels - 1 - int(level)
        if block is not None:
            layer = f"resnets.{block}"
        elif attention is not None:
            layer = f"attentions.{attention}"
        else:
            layer = f"{layer}rs.0"
        key = f"{side}_blocks.{place}.{layer}.{rest}"
    for pattern, ours in LAYERS.items():
        key = re.sub(pattern, ours, key)
    return key


def _config(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Arguments of `VQModel`, read off the tensors' shapes."""
    try:
        levels = _levels(state)
        widths = [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
        num_codes, code_dim = state["quantize.embedding.weight"].shape
        in_channels = state["encoder.conv_in.weight"].shape[1]
        latent_channels = state["quant_conv.weight"].shape[1]
    except KeyError as e:
        near = nearest(str(e.args[0]), state)
        raise UserError(
            f"{source} holds no VQ autoencoder ({e.args[0]} is missing{near}); give another file."
        ) from None
    attends = [f"encoder.down.{i}.attn.0.q.weight" in state for i in range(levels)]
    return {
        "in_channels": in_channels,
        "out_channels": in_channels,
        "block_out_channels": tuple(widths),
        "down_block_types": tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)),
        "layers_per_block": numbered(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": latent_channels,
        "num_vq_embeddings": num_codes,
        "vq_embed_dim": code_dim,
        "norm_num_groups": NORM_GROUPS,
        "scaling_factor": 1.0,
    }
