"""Published encoder checkpoints → `SSLEncoder`; `rcg.published.encoder_formats` says how each is laid out.

Each key of a file is loaded, dropped for a stated reason, or an error: see `rcg.core.state_dicts.Conversion`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

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
from rcg.encoders.heads import HEAD_STRIDE, HeadType
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.published.encoder_formats import DEIT, DINO, FORMATS, MOCOV3, TEXT_MATRIX, Format, detect_format
from rcg.published.options import Head

__all__ = ["FORMATS", "convert_contents", "detect_format", "encoder_from_state"]

VIT_KEYS = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
"""The keys of a plain ViT whose shapes tell its sizes, and how many axes they have."""


def convert_contents(
    contents: Mapping[str, Any],
    source: str,
    *,
    format: str | None = None,
    num_heads: int | None = None,
    head: Head = "projection",
) -> Conversion[SSLEncoder]:
    """Read a published checkpoint of any known format.

    Width, depth, patch, image size and head come from the tensors' shapes; images are normalised and resized as RCG
    does. The representation is the head's output, standardised (RCG, section 3.1), or the class token's without a head.

    Args:
        contents: what `rcg.core.state_dicts.read_checkpoint` gave.
        source: what a message calls the file.
        format: a name in `FORMATS`; None recognises it.
        num_heads: attention heads; None takes the published model's of that width.
        head: "projection", the head of self-supervised training, where the file has one; "text", StableRep+'s projection
            to where captions are; "none", the class token.

    Raises:
        UserError: the file is of no known format, lacks the head, or has keys that do not fit.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"there is no checkpoint format {format!r}; the known ones are {', '.join(FORMATS)}.")
    kind = format or detect_format(contents)
    if kind is None:
        raise UserError(
            f"{source} holds {some(map(str, contents)) or 'nothing'} and is no encoder checkpoint of a known format "
            f"({', '.join(FORMATS)}); weights under timm's own names can be read by SSLEncoder.from_timm."
        )
    layout = FORMATS[kind]
    weights = weights_under(contents, layout.containers, source, bare=True)
    conversion = _convert(weights, kind, layout, source, num_heads, head)
    entries = {f"{name}.*": reason for name, reason in layout.dropped_entries.items() if name in contents}
    conversion.dropped.update(entries)
    return conversion


def encoder_from_state(
    state: Mapping[str, Tensor], source: str, *, num_heads: int | None = None, head: Head = "projection"
) -> Conversion[SSLEncoder]:
    """Read the frozen encoder that RCG's RDM and MAGE files carry.

    Args:
        state: its keys, `pretrained_encoder.` taken off; the head tells what it is. The kind of DINO's and iBOT's, which
            look alike, is "dino".
        source: what a message calls the file.
        num_heads, head: as in `convert_contents`.

    Raises:
        UserError: a head of no known kind, or keys that do not fit.
    """
    names = without_wrapper(state)[0]
    if any(name.startswith("head.mlp.") for name in names):
        return _convert(state, "dino", DINO, source, num_heads, head)
    if "head.weight" in names:
        return _convert(state, "deit", DEIT, source, num_heads, head)
    if any(re.match(r"head\.\d+\.", name) for name in names):
        moco = replace(
            MOCOV3, backbone={"": "backbone."}, heads={"projection": {"head.": "head."}}, usually_wrapped=False
        )
        return _convert(state, "mocov3", moco, source, num_heads, head)
    raise UserError(
        f"{source}: the frozen encoder has no head by which to tell its kind; convert the encoder's own file instead."
    )


def _convert(
    weights: Mapping[str, Tensor], kind: str, layout: Format, source: str, num_heads: int | None, head: Head
) -> Conversion[SSLEncoder]:
    notes: list[str] = []
    state, prefix = without_wrapper(weights)
    if prefix and not layout.usually_wrapped:
        notes.append(f"every key began with the `{prefix}` of a DistributedDataParallel wrapper, which was taken off.")
    if head not in get_args(Head):
        raise UserError(f"head is {head!r}, but it must be one of {', '.join(map(repr, get_args(Head)))}.")
    if head == "text" and head not in layout.heads:
        having = ", ".join(name for name, other in FORMATS.items() if head in other.heads)
        raise UserError(f"{source}: a {kind} file has no {head} head, only {having} has; ask for another head.")
    loaded, dropped = _account(state, layout, head, kind, source)
    tensors: dict[str, Tensor] = {}
    for key, name in loaded.items():
        if name in tensors:
            raise UserError(f"{source} holds {name} twice, once as {key}; take a file as it was published.")
        transposed = key == TEXT_MATRIX and state[key].ndim == 2
        tensors[name] = state[key].t().contiguous() if transposed else state[key]
    tensors = widened(tensors, notes)
    config = _vit_config(_under("backbone.", tensors), layout.known_heads, num_heads, source)
    head_type: HeadType = "linear" if TEXT_MATRIX in loaded else layout.head_type
    head_config = _head_config(head_type, _under("head.", tensors), source)
    if head == "text" and not head_config:
        raise UserError(f"{source} lacks {TEXT_MATRIX}; ask for another head.")
    if head == "projection" and not head_config:
        notes.append("the file has no projection head, so that the representation is the class token.")

    def build() -> SSLEncoder:
        return SSLEncoder(
            arch="vit_base_patch16_224",
            arch_kwargs=config,
            image_size=config["img_size"],
            pool="token",
            **head_config,
        )

    encoder = build_filled(build, tensors, source)
    whole = {prefix + key: name for key, name in loaded.items()}
    return Conversion(encoder, kind, whole, {prefix + key: reason for key, reason in dropped.items()}, notes)


def _account(
    state: Mapping[str, Tensor], layout: Format, head: Head, kind: str, source: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Split a file's keys into {key: name in `SSLEncoder`, spelt right} and {key: reason for dropping}."""
    if any(key.startswith(("dist_token", "head_dist.")) for key in state):
        raise UserError(
            f"{source} is a distilled DeiT, which has a second class token; take the DeiT without distillation."
        )
    loaded: dict[str, str] = {}
    dropped: dict[str, str] = {}
    own = layout.heads.get(head, {})
    for key in state:
        if reason := next((r for pattern, r in layout.dropped.items() if re.match(pattern, key)), None):
            dropped[key] = reason
        elif begin := next((b for b in own if key.startswith(b)), None):
            loaded[key] = own[begin] + key.removeprefix(begin)
        elif other := next((h for h, begins in layout.heads.items() if key.startswith(tuple(begins))), None):
            dropped[key] = f"the {other} head was not asked for"
        elif (begin := next((b for b in layout.backbone if key.startswith(b)), None)) is not None:
            name = layout.backbone[begin] + key.removeprefix(begin)
            for wrong, right in layout.renames.items():
                name = right + name.removeprefix(wrong) if name.startswith(wrong) else name
            loaded[key] = name
        else:
            near = nearest(key, [*own, *layout.backbone])
            raise UserError(
                f"{source} holds the key {key}, which is neither the encoder's nor one to leave out{near}; "
                "take a file as it was published."
            )
    if not loaded:
        what = f"{begin}* weights" if (begin := next(iter(layout.backbone))) else "weights of a ViT"
        raise UserError(f"{source} holds no {what} and so is no {kind} checkpoint; give another file or format.")
    return loaded, dropped


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _vit_config(
    state: Mapping[str, Tensor], heads_by_width: Mapping[int, int], num_heads: int | None, source: str
) -> dict[str, Any]:
    """timm arguments of a plain ViT, read off its tensors' shapes.

    Raises:
        UserError: a key of a plain ViT is missing, or the number of heads is unknown or impossible.
    """
    for key, ndim in VIT_KEYS.items():
        if key not in state or state[key].ndim != ndim:
            near = "" if key in state else nearest(key, state)
            raise UserError(f"{source} is not a plain ViT's: it lacks a proper {key}{near}; give another file.")
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    positions = state["pos_embed"].shape[1] - state["cls_token"].shape[1]
    grid = math.isqrt(max(positions, 0))
    if not grid or grid * grid != positions:
        raise UserError(f"{source}: the position embedding has {positions} patches, which is no square grid.")
    heads = num_heads or heads_by_width.get(width)
    if heads is None:
        raise UserError(
            f"{source}: the number of attention heads at width {width} is not known; add --encoder-num-heads."
        )
    if width % heads:
        raise UserError(
            f"{source}: {heads} attention heads do not divide the width {width}; give another --encoder-num-heads."
        )
    return {
        "img_size": grid * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": numbered(state, r"blocks\.(\d+)\."),
        "num_heads": heads,
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }


def _head_config(head_type: HeadType, head: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """`SSLEncoder` arguments of a head (keys `0.weight`, …), read off its matrices; nothing for no head."""
    if not head:
        return {}
    stride = HEAD_STRIDE[head_type]
    layers = 1 + max((int(m[1]) for k in head if (m := re.match(r"(\d+)\.", k))), default=0) // stride
    first, last = "0.weight", f"{(layers - 1) * stride}.weight"
    for key in (first, last):
        if key not in head or head[key].ndim != 2:
            raise UserError(f"{source}: the head lacks a proper head.{key}{nearest(key, head)}; give a complete file.")
    return {
        "head_type": head_type,
        "head_layers": layers,
        "head_hidden_dim": head[first].shape[0],
        "head_dim": head[last].shape[0],
    }
