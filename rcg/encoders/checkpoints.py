"""Published encoder checkpoints → `SSLEncoder`. A new format is one more entry of `FORMATS`.

Each key of a file is loaded, dropped for a stated reason, or an error: see `Conversion`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rcg.encoders.ssl_encoder import IMAGENET_MEAN, IMAGENET_STD, SSLEncoder
from rcg.errors import UserError
from rcg.foreign import load_exactly, read_checkpoint, tensors_of


@dataclass(frozen=True)
class Format:
    """How one family of published files is laid out."""

    container: str
    """Top-level entry that holds the weights."""
    prefix: str
    """What the encoder's own keys begin with; it is taken off."""
    known_heads: Mapping[int, int]
    """Attention heads by width: the one thing that no tensor's shape tells."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions (matched at the start of the full key) → why such keys are not loaded."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Misspelt parts of keys, after the prefix is off → how they should read."""
    head_prefix: str | None = None
    """What the projection head's keys begin with, after the prefix is off; None: the format has no head."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


FORMATS: dict[str, Format] = {
    "mocov3": Format(
        container="state_dict",
        prefix="module.base_encoder.",
        known_heads={384: 12, 768: 12, 1024: 16},  # MoCo-v3's ViT-S has 12 heads, not 6
        dropped={
            r"module\.momentum_encoder\.": "the momentum encoder only makes training targets",
            r"module\.predictor\.": "the predictor is used in training only",
        },
        renames={  # the published ViT-L file
            "blocks.13.norm13.": "blocks.13.norm1.",
            "blocks.13.mlp.fc13.": "blocks.13.mlp.fc1.",
            "blocks.14.norm14.": "blocks.14.norm2.",
            "blocks.14.mlp.fc14.": "blocks.14.mlp.fc2.",
        },
        head_prefix="head.",
    ),
}


@dataclass
class Conversion:
    """An encoder read from a published file, and what became of each of the file's keys."""

    encoder: SSLEncoder
    format: str
    loaded: dict[str, str]
    """Key in the file → name in the encoder."""
    dropped: dict[str, str]
    """Key in the file → why it was left out."""


def _detect(contents: Mapping[str, Any], path: Path) -> str:
    for name, layout in FORMATS.items():
        weights = contents.get(layout.container)
        if isinstance(weights, Mapping) and any(str(k).startswith(layout.prefix) for k in weights):
            return name
    keys = [str(k) for k in contents]
    example = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    raise UserError(
        f"{path} holds {example or 'nothing'} and is no encoder checkpoint of a known format ({', '.join(FORMATS)})."
    )


def _account(weights: Mapping[str, Tensor], layout: Format, path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Split a file's keys into {key: name without prefix, spelt right} and {key: reason for dropping}."""
    wanted: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for key in weights:
        reasons = (reason for pattern, reason in layout.dropped.items() if re.match(pattern, key))
        if key.startswith(layout.prefix):
            name = key.removeprefix(layout.prefix)
            for wrong, right in layout.renames.items():
                name = right + name.removeprefix(wrong) if name.startswith(wrong) else name
            wanted[key] = name
        elif reason := next(reasons, None):
            dropped[key] = reason
        else:
            raise UserError(f"{path} holds the key {key}, which is neither the encoder's nor one to leave out.")
    return wanted, dropped


def _vit_config(
    state: Mapping[str, Tensor], heads_by_width: Mapping[int, int], num_heads: int | None
) -> dict[str, Any]:
    """timm arguments of a plain ViT, read off its tensors' shapes.

    Raises:
        UserError: a key of a plain ViT is missing, or the number of heads is unknown or impossible.
    """
    try:
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        positions = state["pos_embed"].shape[1] - state["cls_token"].shape[1]
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as e:
        raise UserError(f"the file is not a plain ViT's: it lacks a proper {str(e).strip(chr(39))}.") from e
    grid = math.isqrt(positions)
    if grid * grid != positions:
        raise UserError(f"the file's position embedding has {positions} patches, which is no square grid.")
    heads = num_heads or heads_by_width.get(width)
    if heads is None:
        raise UserError(f"the number of attention heads at width {width} is not known; give num_heads.")
    if width % heads:
        raise UserError(f"{heads} attention heads do not divide the width {width}; give another num_heads.")
    depth = 1 + max(int(m[1]) for k in state if (m := re.match(r"blocks\.(\d+)\.", k)))
    return {
        "img_size": grid * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": hidden / width,
    }


def _head_config(head: Mapping[str, Tensor]) -> dict[str, int]:
    """`SSLEncoder` arguments of a projection head, read off its matrices (`0.weight`, `3.weight`, …)."""
    matrices = [head[k] for k in sorted((k for k in head if head[k].ndim == 2), key=lambda k: int(k.split(".")[0]))]
    if not matrices:
        return {"head_layers": 0}
    return {
        "head_layers": len(matrices),
        "head_hidden_dim": matrices[0].shape[0],
        "head_dim": matrices[-1].shape[0],
    }


def convert_checkpoint(path: str | Path, *, format: str | None = None, num_heads: int | None = None) -> Conversion:
    """Read a published checkpoint of any known format.

    Width, depth, patch, image size and projection head come from the tensors' shapes. The representation is the
    head's output, standardised (RCG, section 3.1), or the class token's where there is no head.

    Args:
        path: the file.
        format: a name in `FORMATS`; None recognises it.
        num_heads: attention heads; None takes the published model's of that width.

    Raises:
        UserError: the file cannot be read, is of no known format, or has keys that do not fit.
    """
    path = Path(path)
    contents = read_checkpoint(path)
    if format is not None and format not in FORMATS:
        raise UserError(f"there is no checkpoint format {format!r}; the known ones are {', '.join(FORMATS)}.")
    name = format or _detect(contents, path)
    layout = FORMATS[name]
    container = contents.get(layout.container)
    weights = tensors_of(container) if isinstance(container, Mapping) else {}
    wanted, dropped = _account(weights, layout, path)
    if not wanted:
        raise UserError(f"{path} holds no {layout.prefix}* weights and so is no {name} checkpoint.")
    state = {name: weights[key] for key, name in wanted.items()}
    head_prefix = layout.head_prefix
    head = {k.removeprefix(head_prefix): v for k, v in state.items() if head_prefix and k.startswith(head_prefix)}
    arch_kwargs = _vit_config(state, layout.known_heads, num_heads)
    encoder = SSLEncoder(
        arch="vit_base_patch16_224",
        arch_kwargs=arch_kwargs,
        image_size=arch_kwargs["img_size"],
        mean=list(layout.mean),
        std=list(layout.std),
        pool="token",
        **_head_config(head),
    )
    target = {key: n if head_prefix and n.startswith(head_prefix) else f"backbone.{n}" for key, n in wanted.items()}
    load_exactly(encoder, {target[key]: weights[key] for key in wanted}, str(path))
    return Conversion(encoder, name, target, dropped)


def load_checkpoint(path: str | Path, *, format: str | None = None, num_heads: int | None = None) -> SSLEncoder:
    """`convert_checkpoint(...)`'s encoder."""
    return convert_checkpoint(path, format=format, num_heads=num_heads).encoder
