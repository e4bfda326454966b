"""LDM checkpoints of RCG (LTH14/rcg) → `LDMUNet`, with every key of the file accounted for.

Such a file holds, under `model` (or `state_dict`):

    model.diffusion_model.NAME        the U-Net
    model_ema.diffusion_modelNAME     its moving average, NAME without dots (and `decay`, `num_updates`)
    cond_stage_model.embedding.weight the class embedding (unused where representations are taken), not averaged
    betas, alphas_cumprod, …          the noise schedule
    first_stage_model.*               the whole frozen autoencoder
    pretrained_encoder.*              the whole frozen encoder, of a model that takes representations
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.state_dicts import (
    Conversion,
    build_filled,
    nearest,
    some,
    weights_under,
    widened,
    without_wrapper,
)
from rcg.image_gen.diffusion.gaussian import betas_of
from rcg.image_gen.ldm.generator import default_scheduler
from rcg.image_gen.ldm.unet import LDMUNet
from rcg.published.latent_vq import CARRIED, factor_of
from rcg.published.options import Weights, no_average
from rcg.published.rdm import CLASSES, EMA, RAW, check_schedule, reason_to_drop
from rcg.published.unets import NO_NULL, Layout, image_size_of, layout_of, translate

HEAD_CHANNELS = 32  # of the published files; no tensor's shape tells
KNOWN_SIZES: Mapping[tuple[int, ...], int] = {(1, 2, 4): 256}
"""Side of the images in pixels, by the multipliers of the levels; no shape tells it either."""


def convert_ldm(
    contents: Mapping[str, Any], source: str, weights: Weights = "ema", image_size: int | None = None
) -> Conversion[LDMUNet]:
    """Read the generator out of an LDM file.

    Args:
        contents: what `rcg.core.state_dicts.read_checkpoint` gave.
        source: what a message calls the file.
        weights: `ema`, what the paper samples with, or `raw`, the last training step.
        image_size: side of the images in pixels; None takes what the published widths have.

    Returns:
        The model in evaluation mode (fp32), and what became of each key. All other sizes are inferred from the tensors. A
        file that carries an encoder takes representations, one with several class embeddings classes, others nothing.

    Raises:
        UserError: no LDM checkpoint, a key missing, unexpected or of another shape than its fellows, another noise
            schedule, or no averaged weights.
    """
    state, wrapper = without_wrapper(weights_under(contents, ("model", "state_dict"), source))
    check_schedule(state, source, torch.cumprod(1 - betas_of(default_scheduler()), 0), "RCG's LDM")
    raw = {key.removeprefix(RAW): tensor for key, tensor in state.items() if key.startswith(RAW)}
    averaged = {name: EMA + name.replace(".", "") for name in raw}
    if weights == "ema" and not any(key in state for key in averaged.values()):
        raise no_average(source)
    keys = averaged if weights == "ema" else {name: RAW + name for name in raw}
    unused = {RAW + name for name in raw} if weights == "ema" else set(averaged.values()) & state.keys()
    if missing := [key for key in keys.values() if key not in state]:
        raise UserError(f"{source} lacks {some(missing)}; take a complete LDM checkpoint.")
    layout = layout_of(raw, source)
    made = translate({name: state[key] for name, key in keys.items()}, layout, HEAD_CHANNELS, source)
    config = _config(state, layout, source, image_size)
    unet = {f"unet.{name}": tensor for parts in made.values() for name, tensor in parts.items()}
    loaded = {keys[key]: ", ".join(f"unet.{name}" for name in parts) for key, parts in made.items() if parts}
    notes: list[str] = []
    if config["condition"] == "representation":
        unet["token_embed.null"] = torch.zeros(1, config["representation_dim"])
    else:
        unet["token_embed.weight"] = state[CLASSES]
        loaded[CLASSES] = "token_embed.weight"
    if config["condition"] != "none":
        notes.append(NO_NULL.format(config["condition"]))
    dropped = dict.fromkeys(unused, f"the {weights} weights were asked for")
    for key in state.keys() - loaded.keys() - dropped.keys():
        reason = reason_to_drop(key)
        if key.startswith(CARRIED):
            reason = "the tokenizer, a component of its own"
        elif key == CLASSES:
            reason = "a model that takes representations never reads it"
        if reason is None:
            near = nearest(key, loaded)
            raise UserError(f"{source} holds {key}{near}, which no LDM has; check that it is the right file.")
        dropped[key] = reason
    model = build_filled(lambda: LDMUNet(**config), widened(unet, notes), f"the generator in {source}")
    return Conversion(
        model, "ldm", {wrapper + k: v for k, v in loaded.items()}, {wrapper + k: v for k, v in dropped.items()}, notes
    )


def _config(state: Mapping[str, Tensor], layout: Layout, source: str, image_size: int | None) -> dict[str, Any]:
    """Arguments of `LDMUNet`, read off the tensors' shapes."""
    size = image_size_of(layout, KNOWN_SIZES, image_size, source)
    classes = state.get(CLASSES)
    token = state.get(RAW + "middle_block.1.transformer_blocks.0.attn2.to_k.weight")
    if token is None or (classes is not None and classes.ndim != 2):
        raise UserError(f"{source} holds no LDM: its middle has no cross-attention; give the LDM's own file.")
    by_representation = any(key.startswith("pretrained_encoder.") for key in state)
    if classes is None and not by_representation:
        raise UserError(f"{source} lacks {CLASSES}, without which this LDM cannot be used; take a complete file.")
    num_classes = 0 if classes is None else len(classes)
    condition = "representation" if by_representation else "class" if num_classes > 1 else "none"
    return {
        "sample_size": size // factor_of(state),
        "in_channels": layout.in_channels,
        "base_channels": layout.base,
        "channel_multipliers": layout.multipliers,
        "num_res_blocks": layout.num_res_blocks,
        "head_channels": HEAD_CHANNELS,
        "token_dim": token.shape[1],
        "condition": condition,
        "representation_dim": token.shape[1] if by_representation else None,
        "num_classes": num_classes if condition == "class" else None,
        "condition_dropout": 0.0,
    }
