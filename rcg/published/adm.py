"""ADM checkpoints of RCG (LTH14/rcg) and of OpenAI's guided-diffusion → `ADMUNet`, with every key of the file accounted for.

RCG's files hold the last weights under `model` and their moving average, which it samples with, under `model_ema`; OpenAI's
are the averaged weights alone, bare or under `state_dict`.
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
from rcg.image_gen.adm.unet import ADMUNet
from rcg.published.options import Weights, no_average
from rcg.published.unets import NO_NULL, image_size_of, layout_of, translate

HEAD_CHANNELS = 64  # of the published files; no tensor's shape tells
KNOWN_SIZES: Mapping[tuple[int, ...], int] = {(1, 1, 2, 2, 4, 4): 256}
"""Side of the images in pixels, by the multipliers of the levels; no shape tells it either."""
UNLIKE: Mapping[tuple[int, tuple[int, ...], int], str] = {
    (192, (1, 2, 3, 4), 3): "64 pixels, whose attention is in another order and whose noise is another",
    (256, (1, 1, 2, 3, 4), 2): "128 pixels, whose attention has four heads at each level",
}
"""guided-diffusion's ImageNet models that no tensor's shape tells from ours: base, multipliers, residual blocks (its README)."""
CONDITION = {
    "rep_proj.weight": "condition_embed.proj.weight",
    "rep_proj.bias": "condition_embed.proj.bias",
    "label_emb.weight": "condition_embed.weight",
}


def convert_adm(
    contents: Mapping[str, Any], source: str, weights: Weights = "ema", image_size: int | None = None
) -> Conversion[ADMUNet]:
    """Read the generator out of an ADM file.

    Args:
        contents: what `rcg.core.state_dicts.read_checkpoint` gave.
        source: what a message calls the file.
        weights: `ema`, what the paper samples with, or `raw`, the last training step.
        image_size: side of the images in pixels; None takes what the published widths have.

    Returns:
        The model in evaluation mode (fp32), and what became of each key. All other sizes are inferred from the tensors. A
        file with `rep_proj` takes representations, one with `label_emb` classes, one with neither nothing.

    Raises:
        UserError: no ADM checkpoint, a key missing, unexpected or of another shape than its fellows, no averaged weights, or a
            model of guided-diffusion that computes something else.
    """
    chosen, dropped, prefix = _choose(contents, source, weights)
    layout = layout_of(chosen, source)
    if layout.out_channels != 2 * layout.in_channels:
        raise UserError(
            f"{source} predicts {layout.out_channels} channels for {layout.in_channels}, but an ADM predicts noise and "
            "variance of each; take a file that was trained with learn_sigma."
        )
    unlike = UNLIKE.get((layout.base, layout.multipliers, layout.num_res_blocks))
    if unlike is not None and "model" not in contents and len(chosen.get("label_emb.weight", ())) == 1000:
        raise UserError(
            f"{source} is guided-diffusion's model of {unlike}, so that it would compute something else here; take one of 256 "
            "pixels."
        )
    size = image_size_of(layout, KNOWN_SIZES, image_size, source)
    made = translate(chosen, layout, HEAD_CHANNELS, source)
    state = {f"unet.{name}": tensor for parts in made.values() for name, tensor in parts.items()}
    state |= {CONDITION[key]: tensor for key, tensor in chosen.items() if key in CONDITION}
    if unknown := [key for key, parts in made.items() if not parts and key not in CONDITION]:
        raise UserError(
            f"{source} holds {some(unknown)}{nearest(min(unknown), [k for k in made if k not in unknown])}, which no ADM "
            "has; check that it is the right file."
        )
    projection, classes = chosen.get("rep_proj.weight"), chosen.get("label_emb.weight")
    config = {
        "sample_size": size,
        "in_channels": layout.in_channels,
        "base_channels": layout.base,
        "channel_multipliers": layout.multipliers,
        "num_res_blocks": layout.num_res_blocks,
        "attention_resolutions": tuple(size // 2**i for i, attends in enumerate(layout.attends) if attends),
        "head_channels": HEAD_CHANNELS,
        "condition": "representation" if projection is not None else "none" if classes is None else "class",
        "representation_dim": None if projection is None else projection.shape[1],
        "num_classes": None if classes is None else len(classes),
        "condition_dropout": 0.0,
    }
    notes: list[str] = []
    if projection is not None:
        state["condition_embed.null"] = torch.zeros(1, projection.shape[1])
    if config["condition"] != "none":
        notes.append(NO_NULL.format(config["condition"]))
    model = build_filled(lambda: ADMUNet(**config), widened(state, notes), f"the generator in {source}")
    loaded = {prefix + key: ", ".join(f"unet.{name}" for name in parts) for key, parts in made.items() if parts}
    loaded |= {prefix + key: CONDITION[key] for key in chosen if key in CONDITION}
    return Conversion(model, "adm", loaded, dropped, notes)


def _choose(
    contents: Mapping[str, Any], source: str, weights: Weights
) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """The weights that are asked for, why others are left out, and the prefix of the chosen ones in an account."""
    if "model" not in contents:
        chosen, wrapper = without_wrapper(weights_under(contents, ["state_dict"], source, bare=True))
        return chosen, {}, wrapper
    name, other = ("model_ema", "model") if weights == "ema" else ("model", "model_ema")
    if weights == "ema" and contents.get(name) is None:
        raise no_average(source)
    chosen, wrapper = without_wrapper(weights_under(contents, [name], source))
    rest = contents.get(other) or {}
    return chosen, {f"{other}.{key}": f"the {weights} weights were asked for" for key in rest}, f"{name}.{wrapper}"
