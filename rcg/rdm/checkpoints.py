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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rcg.errors import UserError
from rcg.foreign import read_checkpoint, some, weights_under
from rcg.rdm.representation_mlp import RepresentationMLP
from rcg.rdm.schedule import alphas_cumprod

RAW = "model.diffusion_model."
EMA = "model_ema.diffusion_model"
CLASSES = "cond_stage_model.embedding.weight"
SCHEDULE = re.compile(
    r"betas|(sqrt_|log_|sqrt_recip_|sqrt_recipm1_)?(one_minus_)?alphas_cumprod(_prev)?|lvlb_weights|logvar"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
)

Weights = Literal["ema", "raw"]


@dataclass
class KeyReport:
    """What became of each key of a checkpoint."""

    loaded: dict[str, str] = field(default_factory=dict)
    """Checkpoint key → parameter of ours."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Checkpoint key → why it was left out."""


def load_official_rdm(path: str | Path, weights: Weights = "ema") -> tuple[RepresentationMLP, KeyReport]:
    """Read a published RDM file.

    Args:
        path: the `.pth` file.
        weights: `ema`, what the paper samples with, or `raw`, the last training step.

    Returns:
        The model in evaluation mode, and what became of every key.

    Raises:
        UserError: not such a file, keys missing or unexpected, another noise schedule, no averaged weights.
    """
    return convert_official_rdm(
        weights_under(read_checkpoint(Path(path)), ("model", "state_dict"), str(path)), weights, name=str(path)
    )


def convert_official_rdm(
    state: dict[str, Tensor], weights: Weights = "ema", name: str = "the checkpoint"
) -> tuple[RepresentationMLP, KeyReport]:
    """`load_official_rdm` on a state dict already read; `name` is for messages."""
    if weights not in ("ema", "raw"):
        raise UserError(f"weights is {weights!r}, but a checkpoint has 'ema' and 'raw' weights.")
    config = _config(state, name)
    model = RepresentationMLP(**config)
    _check_schedule(state, name)
    report = KeyReport()
    ours: dict[str, Tensor] = {}
    missing: list[str] = []
    for parameter in model.state_dict():
        raw, averaged = RAW + parameter, EMA + parameter.replace(".", "")
        wanted, other = (averaged, raw) if weights == "ema" else (raw, averaged)
        if parameter == "class_embedding.weight":
            wanted, other = CLASSES, ""
        if wanted not in state:
            missing.append(wanted)
            continue
        ours[parameter] = state[wanted]
        report.loaded[wanted] = parameter
        if other in state:
            report.dropped[other] = f"the {weights} weights were asked for"
    if missing and weights == "ema" and not any(key.startswith(EMA) for key in state):
        raise UserError(f"{name} holds no averaged weights (model_ema.*); ask for the raw ones instead.")
    if missing:
        raise UserError(f"{name} lacks {some(missing)}; take a complete RDM checkpoint.")
    unexpected = [key for key in state if key not in report.loaded and not _drop(key, report, config)]
    if unexpected:
        raise UserError(f"{name} holds {some(unexpected)}, which no RDM has; check that it is the right file.")
    differing = [k for k, v in model.state_dict().items() if ours[k].shape != v.shape]
    if differing:
        raise UserError(f"{name} has parameters of unusual shapes ({some(differing)}); it is not a published RDM.")
    model.load_state_dict({k: v.float() for k, v in ours.items()})
    return model.eval(), report


def _config(state: dict[str, Tensor], name: str) -> dict[str, int]:
    """The model's sizes, read off the shapes."""
    needed = [RAW + "input_proj.weight", RAW + "res_blocks.0.in_layers.2.weight", RAW + "out.2.weight"]
    missing = [key for key in needed if key not in state]
    if missing:
        raise UserError(f"{name} is no RDM checkpoint: it lacks {some(missing)}; give the RDM's own file.")
    width, dim = state[needed[0]].shape
    blocks = {int(m[1]) for key in state if (m := re.match(re.escape(RAW) + r"res_blocks\.(\d+)\.", key))}
    config = {"representation_dim": dim, "width": width, "depth": max(blocks) + 1}
    context = state.get(RAW + "res_blocks.0.context_layers.1.weight")
    if context is not None:
        if CLASSES not in state:
            raise UserError(f"{name} lacks {CLASSES}, without which a class-conditional RDM cannot be used.")
        config |= {"num_classes": len(state[CLASSES]), "context_dim": context.shape[1]}
    return config


def _check_schedule(state: dict[str, Tensor], name: str) -> None:
    ours = alphas_cumprod()
    theirs = state.get("alphas_cumprod")
    if theirs is not None and (theirs.shape != ours.shape or not torch.allclose(theirs.double(), ours, atol=1e-6)):
        raise UserError(f"{name} was trained with another noise schedule than the RDM's; it cannot be sampled here.")


def _drop(key: str, report: KeyReport, config: dict[str, int]) -> bool:
    """Record a key that is left out on purpose; False if it is unknown."""
    if key in report.dropped:
        return True
    reason = ""
    if SCHEDULE.fullmatch(key):
        reason = "the scheduler computes it"
    elif key.startswith("pretrained_encoder."):
        reason = "the encoder is a component of its own"
    elif key in ("model_ema.decay", "model_ema.num_updates"):
        reason = "of use in training only"
    elif key == CLASSES and "num_classes" not in config:
        reason = "the unconditional model never reads it"
    if reason:
        report.dropped[key] = reason
    return bool(reason)
