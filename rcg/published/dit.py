"""DiT checkpoints of RCG (LTH14/rcg) → `DiT`, with every key of the file accounted for.

Such a file holds the weights of the last step under `model` and their moving average under `model_ema`, with equal keys.
Neither encoder nor autoencoder is in it. (Files of the original DiT, which has another GELU and no representations, are not
of this kind.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.state_dicts import Conversion, build_filled, nearest, numbered, weights_under, widened, without_wrapper
from rcg.image_gen.latent_dit.transformer import DiT, positions
from rcg.published.options import Weights, no_average

EMA = "model_ema"
KNOWN_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # S, B, L, XL; the one thing no tensor's shape tells
POSITIONS = "pos_embed"
CLASSES = "y_embedder.embedding_table.weight"
NULL = "fake_latent"
TIME_BIAS = "time_embed.linear_2.bias"
RENAMED = {
    "x_embedder.proj.": "patch_embed.",
    "t_embedder.mlp.0.": "time_embed.linear_1.",
    "t_embedder.mlp.2.": "time_embed.linear_2.",
    "rep_embedder.": "condition_embed.proj.",
    NULL: "condition_embed.null",
    CLASSES: "condition_embed.weight",
    "final_layer.adaLN_modulation.1.": "head.modulation.",
    "final_layer.linear.": "head.linear.",
}
"""The beginning of a key in the file → that of our name."""


def convert_dit(
    contents: Mapping[str, Any], weights: Weights, source: str, *, num_heads: int | None = None
) -> Conversion[DiT]:
    """Read a DiT of RCG.

    Args:
        contents: what `rcg.core.state_dicts.read_checkpoint` gave.
        weights: `ema`, what the reference samples with, or `raw`, the last training step.
        source: what a message calls the file.
        num_heads: None takes what the published widths have (384: 6, 768: 12, 1024 and 1152: 16).

    Returns:
        The model in eval mode (fp32), and what became of each key. All sizes are inferred from the tensors. A file with
        `fake_latent` takes representations, one with more than one class classes, one with neither nothing.

    Raises:
        UserError: no such file, no averaged weights, or a key missing, unexpected or of another shape than its fellows.
    """
    if weights == "ema" and not isinstance(contents.get(EMA), Mapping):
        raise no_average(source)
    container, other = (EMA, "model") if weights == "ema" else ("model", EMA)
    state, wrapper = without_wrapper(weights_under(contents, [container], f"{source} is no DiT checkpoint"))
    config = _config(state, source, num_heads)
    notes: list[str] = []
    state = widened(state, notes)
    dropped = _dropped(state, config, source)
    loaded = {key: _our_name(key) for key in state if key not in dropped}
    ours = {name: state[key] for key, name in loaded.items()}
    if config["condition"] == "none" and TIME_BIAS in ours:
        ours[TIME_BIAS] = ours[TIME_BIAS] + ours.pop(loaded[CLASSES])[0]
        loaded[CLASSES] = TIME_BIAS
        notes.append("the one class of this model, which is added to every time, has become part of the time's bias.")
    model = build_filled(lambda: DiT(**config), ours, f"the DiT in {source}")
    left_out = {wrapper + k: v for k, v in dropped.items()}
    left_out |= {f"{other}.{key}": f"the {weights} weights were asked for" for key in contents.get(other) or {}}
    return Conversion(model, "dit", {wrapper + k: v for k, v in loaded.items()}, left_out, notes)


def _our_name(key: str) -> str:
    """A key in the file → the name in `DiT`; as it is where nothing is known of it."""
    for theirs, ours in RENAMED.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return re.sub(r"^(blocks\.\d+)\.adaLN_modulation\.1\.", r"\1.modulation.", key)


def _dropped(state: Mapping[str, Tensor], config: dict[str, Any], source: str) -> dict[str, str]:
    """What is left out, and why; the positions are compared with ours first."""
    fixed = positions(config["width"], config["sample_size"] // config["patch_size"])
    held = state[POSITIONS][0]
    if held.shape != fixed.shape or not torch.allclose(held, fixed, atol=2e-3):  # half precision, too
        raise UserError(f"{source}: {POSITIONS} is not the fixed sine and cosine embedding of DiT; take another file.")
    dropped = {POSITIONS: "a constant, which the model computes"}
    if config["condition"] != "representation":
        unread = "only a model that takes representations reads it"
        dropped |= {key: unread for key in state if key.startswith(("rep_embedder.", NULL))}
    else:
        dropped |= {key: "a model that takes representations never reads it" for key in state if key == CLASSES}
    return dropped


def _config(state: Mapping[str, Tensor], source: str, num_heads: int | None) -> dict[str, Any]:
    """Arguments of `DiT`, read off the tensors' shapes."""
    try:
        width, channels, size, _ = state["x_embedder.proj.weight"].shape
        tokens = state[POSITIONS].shape[1]
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        values = state["final_layer.linear.weight"].shape[0]
        classes, representation_dim = state[CLASSES].shape[0], state["rep_embedder.weight"].shape[1]
    except KeyError as e:
        near = nearest(str(e.args[0]), state.keys())
        raise UserError(f"{source} holds no DiT of RCG: {e.args[0]} is missing{near}.") from None
    if (side := math.isqrt(tokens)) ** 2 != tokens:
        raise UserError(f"{source} has positions for {tokens} tokens, which is not a square grid.")
    heads = KNOWN_HEADS.get(width) if num_heads is None else num_heads
    if heads is None:
        raise UserError(f"{source} is {width} wide, which is none of the published sizes; add --generator-num-heads.")
    condition = "representation" if NULL in state else "class" if classes > 1 else "none"
    return {
        "sample_size": side * size,
        "patch_size": size,
        "in_channels": channels,
        "width": width,
        "depth": numbered(state, r"blocks\.(\d+)\."),
        "num_heads": heads,
        "mlp_ratio": hidden / width,
        "learn_sigma": values == 2 * channels * size**2,
        "condition": condition,
        "representation_dim": representation_dim if condition == "representation" else None,
        "num_classes": classes - 1 if condition == "class" else None,
        "condition_dropout": 0.0 if condition == "none" else 0.1,
    }
