"""How published encoder files are laid out, and which of the layouts a file has.

A new format is one more entry of `FORMATS` and a line in `detect_format`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rcg.core.state_dicts import tensors_of, without_wrapper
from rcg.encoders.heads import HeadType
from rcg.published.options import Head

MOCO_HEADS = {384: 12, 768: 12, 1024: 16}  # MoCo-v3's ViT-S has 12 heads, not 6
USUAL_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
TEXT_MATRIX = "image_projection"  # a bare parameter [width, out], the transpose of a linear layer's


def _stablerep_names(prefix: str) -> dict[str, str]:
    layers = {"layer1": 0, "bn1": 1, "layer2": 3, "bn2": 4, "layer3": 6}
    return {f"{prefix}.{name}.": f"head.{i}." for name, i in layers.items()}


@dataclass(frozen=True)
class Format:
    """How one family of published files is laid out. All are plain ViTs under timm's names, for 3-channel images."""

    containers: tuple[str, ...]
    """Top-level entries that may hold the weights; without any of them they are the top level itself."""
    backbone: Mapping[str, str]
    """What the keys of the backbone begin with, `module.` taken off → the same in `SSLEncoder`. The first match counts."""
    known_heads: Mapping[int, int]
    """Attention heads by width: the one thing that no tensor's shape tells."""
    heads: Mapping[Head, Mapping[str, str]] = field(default_factory=dict)
    """The heads that can be had, and their keys as in `backbone`."""
    head_type: HeadType = "mocov3"
    """What the projection head is."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions (matched at the start of the key, `module.` taken off) → why such keys are not loaded."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Misspelt beginnings of names in `SSLEncoder` → how they should read."""
    dropped_entries: Mapping[str, str] = field(default_factory=dict)
    """Other top-level entries that hold weights → why they are not loaded."""
    usually_wrapped: bool = False
    """The published files have `module.` before every key."""


MOCOV3 = Format(
    containers=("state_dict",),
    backbone={"base_encoder.": "backbone."},
    known_heads=MOCO_HEADS,
    heads={"projection": {"base_encoder.head.": "head."}},
    dropped={
        r"momentum_encoder\.": "the momentum encoder only makes training targets",
        r"predictor\.": "the predictor is used in training only",
    },
    renames={  # the published ViT-L file
        "backbone.blocks.13.norm13.": "backbone.blocks.13.norm1.",
        "backbone.blocks.13.mlp.fc13.": "backbone.blocks.13.mlp.fc1.",
        "backbone.blocks.14.norm14.": "backbone.blocks.14.norm2.",
        "backbone.blocks.14.mlp.fc14.": "backbone.blocks.14.mlp.fc2.",
    },
    usually_wrapped=True,
)
DINO = Format(  # and iBOT, whose files differ in what is dropped
    containers=("teacher", "state_dict"),
    backbone={"backbone.": "backbone.", "": "backbone."},  # the second: files of the backbone alone
    known_heads=USUAL_HEADS,
    heads={"projection": {"head.mlp.": "head."}},
    head_type="dino",
    dropped={
        r"head\.last_layer2?\.": "the prototypes are used in training only",
        r"(backbone\.)?masked_embed$": "the mask token is used in training only",
    },
    dropped_entries={"student": "the teacher is the averaged student and the one evaluated"},
)
DEIT = Format(
    containers=("model",),
    backbone={"": "backbone."},
    known_heads=USUAL_HEADS,
    dropped={r"head\.(weight|bias)$": "the classifier of supervised training"},
)
STABLEREP = Format(
    containers=("model",),
    backbone={"visual.": "backbone."},
    known_heads=USUAL_HEADS,
    heads={"projection": _stablerep_names("image_mlp")},
    head_type="stablerep",
)
STABLEREP_PLUS = replace(
    STABLEREP,
    heads={
        "projection": _stablerep_names("image_mlp"),
        "text": {**_stablerep_names(TEXT_MATRIX), TEXT_MATRIX: "head.0.weight"},
    },
    dropped={
        r"(transformer|token_embedding|ln_final|text_projection)\.": "the text tower reads captions, not images",
        r"(positional_embedding|text_projection)$": "the text tower reads captions, not images",
        r"logit_scale$": "the temperature of the loss is used in training only",
    },
)
FORMATS: dict[str, Format] = {
    "mocov3": MOCOV3,
    "dino": DINO,
    "ibot": DINO,
    "deit": DEIT,
    "stablerep": STABLEREP,
    "stablerep+": STABLEREP_PLUS,
}


def detect_format(contents: Mapping[str, Any]) -> str | None:
    """Which format a checkpoint is of, by its keys.

    Args:
        contents: what `rcg.core.state_dicts.read_checkpoint` gives.

    Returns:
        a name in `FORMATS`; None for anything else, files of RCG's other models among it.
    """

    def keys(of: Any) -> set[str]:
        return set(without_wrapper(tensors_of(of))[0]) if isinstance(of, Mapping) else set()

    def has(names: set[str], *beginnings: str) -> bool:
        return any(name.startswith(beginnings) for name in names)

    def is_vit(names: set[str]) -> bool:
        others = has(names, "token_emb.", "mask_token", "decoder_", "visual.")  # MAGE, MAE, DINOv2, CLIP
        return {"cls_token", "pos_embed"} <= names and has(names, "patch_embed.proj.") and not others

    state_dict, teacher, model = (keys(contents.get(name)) for name in ("state_dict", "teacher", "model"))
    if has(state_dict, "base_encoder."):
        return "mocov3"
    if has(teacher, "backbone."):
        masks = ("backbone.masked_embed", "head.last_layer2.")
        return "ibot" if has(teacher | keys(contents.get("student")), *masks) else "dino"
    if has(model, "visual.") and has(model, "image_mlp.", TEXT_MATRIX):
        return "stablerep+" if has(model, TEXT_MATRIX, "text_projection", "transformer.") else "stablerep"
    if is_vit(model) and has(model, "head.", "head_dist.", "dist_token"):
        return "deit"
    if is_vit(state_dict) and not has(state_dict, "head."):
        return "ibot"
    if is_vit(keys(contents)) and not has(keys(contents), "head."):
        return "dino"
    return None
