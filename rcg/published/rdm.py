"""Reading the published RDM checkpoints (reference LTH14/rcg), with every key accounted for.

Such a file holds, under `model` (or `state_dict`):

    model.diffusion_model.NAME        the denoiser; NAME is ours
    model_ema.diffusion_modelNAME     its moving average, NAME without dots (and `decay`, `num_updates`)
    cond_stage_model.embedding.weight the class embedding (an unused single row in the unconditional model), not averaged
    betas, alphas_cumprod, …          the noise schedule
    pretrained_encoder.*              the whole frozen encoder
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
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
from rcg.published.options import Weights, no_average
from rcg.rdm.representation_mlp import RepresentationMLP
from rcg.rdm.schedule import alphas_cumprod

RAW = "model.diffusion_model."
EMA = "model_ema.diffusion_model"
CLASSES = "cond_stage_model.embedding.weight"
SCHEDULE = re.compile(
    r"betas|(sqrt_|log_|sqrt_recip_|sqrt_recipm1_)?(one_minus_)?alphas_cumprod(_prev)?|lvlb_weights|logvar"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
)


def convert_official_rdm(
    contents: Mapping[str, Any], weights: Weights = "ema", source: str = "the checkpoint"
) -> Conversion[RepresentationMLP]:
    """Read a published RDM file.

    Args:
        contents: what `rcg.core.state_dicts.read_checkpoint` gave.
        weights: `ema`, what the paper samples with, or `raw`, the last training step.
        source: what a message calls the file.

    Returns:
        The model in evaluation mode (fp32), and what became of every key.

    Raises:
        UserError: not such a file, keys missing or unexpected, another noise schedule, no averaged weights.
    """
    if weights not in ("ema", "raw"):
        raise UserError(f"weights is {weights!r}, but a checkpoint has 'ema' and 'raw' weights.")
    state, wrapper = without_wrapper(weights_under(contents, ("model", "state_dict"), source))
    config = _config(state, source)
    check_schedule(state, source, alphas_cumprod(), "the RDM's")
    with init_empty_weights():
        parameters = list(RepresentationMLP(**config).state_dict())
    loaded: dict[str, str] = {}
    dropped: dict[str, str] = {}
    missing: list[str] = []
    for parameter in parameters:
        raw, averaged = RAW + parameter, EMA + parameter.replace(".", "")
        wanted, other = (averaged, raw) if weights == "ema" else (raw, averaged)
        if parameter == "class_embedding.weight":  # not averaged
            wanted, other = CLASSES, ""
        if wanted in state:
            loaded[wanted] = parameter
        else:
            missing.append(wanted)
        if other in state:
            dropped[other] = f"the {weights} weights were asked for"
    if missing and weights == "ema" and not any(key.startswith(EMA) for key in state):
        raise no_average(source)
    unexpected = []
    for key in state.keys() - loaded.keys() - dropped.keys():
        if reason := reason_to_drop(key):
            dropped[key] = reason
        elif key == CLASSES and "num_classes" not in config:
            dropped[key] = "the unconditional model never reads it"
        else:
            unexpected.append(key)
    if missing:
        raise UserError(
            f"{source} lacks {some(missing)}{nearest(missing[0], unexpected)}; take a complete RDM checkpoint."
        )
    if unexpected:
        raise UserError(
            f"{source} holds {some(unexpected)}{nearest(min(unexpected), loaded)}, which no RDM has; check that it is "
            "the right file."
        )
    notes: list[str] = []
    ours = widened({name: state[key] for key, name in loaded.items()}, notes)
    model = build_filled(lambda: RepresentationMLP(**config), ours, source)
    return Conversion(
        model, "rdm", {wrapper + k: v for k, v in loaded.items()}, {wrapper + k: v for k, v in dropped.items()}, notes
    )


def _config(state: dict[str, Tensor], name: str) -> dict[str, int]:
    """The model's sizes, read off the shapes."""
    needed = [RAW + "input_proj.weight", RAW + "res_blocks.0.in_layers.2.weight", RAW + "out.2.weight"]
    missing = [key for key in needed if key not in state]
    if missing:
        near = nearest(missing[0], state)
        raise UserError(f"{name} is no RDM checkpoint: it lacks {some(missing)}{near}; give the RDM's own file.")
    width, dim = state[needed[0]].shape
    depth = numbered(state, re.escape(RAW) + r"res_blocks\.(\d+)\.")
    config = {"representation_dim": dim, "width": width, "depth": depth}
    context = state.get(RAW + "res_blocks.0.context_layers.1.weight")
    if context is not None:
        if CLASSES not in state:
            raise UserError(f"{name} lacks {CLASSES}, without which a class-conditional RDM cannot be used.")
        config |= {"num_classes": len(state[CLASSES]), "context_dim": context.shape[1]}
    return config


def check_schedule(state: Mapping[str, Tensor], name: str, ours: Tensor, whose: str) -> None:
    """Raise `UserError` if a file says that its model was trained with other alphas_cumprod than ours, float64 [T]."""
    theirs = state.get("alphas_cumprod")
    if theirs is None:
        return
    tolerance = 1e-6 if theirs.dtype in (torch.float32, torch.float64) else 5e-3  # half precision rounds that much
    if theirs.shape != ours.shape or not torch.allclose(theirs.double(), ours, atol=tolerance):
        raise UserError(f"{name} was trained with another noise schedule than {whose}; it cannot be sampled here.")


def reason_to_drop(key: str) -> str | None:
    """Why a key of an RDM's or LDM's file that is no weight of it is left out; None if it is unknown."""
    if SCHEDULE.fullmatch(key):
        return "the scheduler computes it"
    if key.startswith("pretrained_encoder."):
        return "the encoder, a component of its own"
    if key in ("model_ema.decay", "model_ema.num_updates"):
        return "of use in training only"
    return None
