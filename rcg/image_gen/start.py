"""Starting a training from the weights of another generator: the one in the box, say, or one of other images."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from rcg.core.errors import UserError
from rcg.core.schema import flag_of
from rcg.image_gen.recipes import RECIPES

CONDITION_PARTS = ("condition_embed.", "token_embed.", "class_emb.", "fake_latent", "latent_prior_proj.")
"""What depends on the kind and the size of a condition."""
FREE = ("condition", "representation_dim", "num_classes", "label_counts", "dropout", "condition_dropout",
        "mask_ratio_min")  # fmt: skip
"""Settings that no other weight's size depends on."""
SHAPELESS = ("norm_groups", "head_channels", "num_heads", "decoder_num_heads", "prediction_type")
"""Settings that no weight's size depends on, but what the weights mean does."""
OF_DATA = ("image_size", "sample_size", "in_channels", "grid_size", "num_codes")
"""Settings that come from images and tokenizer."""


@torch.no_grad()
def start_from(model: Any, other: Any) -> list[str]:
    """Give a new model the weights of a trained one of its family.

    What takes in the condition is taken over where it fits, and stays new otherwise. A model without condition computes
    what the other one does with its null condition.

    Args:
        model: whose weights are set.
        other: of the same class and the same sizes; its condition may be another one (of an LDM, if its token is as wide; but
            a MAGE without condition goes on from one without).

    Returns:
        Names of the weights that stay new.

    Raises:
        UserError: a model of another family or of other sizes, or without a null condition where one is needed.
    """
    if type(other) is not type(model):
        raise UserError(
            f"this training makes a {type(model).__name__}, but the weights to start from are a {type(other).__name__}'s; "
            "start from one of the same family."
        )
    ours, theirs, new, misfits = model.state_dict(), other.state_dict(), [], False
    for name, value in ours.items():
        given = theirs.get(name)
        if given is not None and given.shape == value.shape:
            value.copy_(given)
        elif name.startswith(CONDITION_PARTS):
            new.append(name)
        else:
            misfits = True
    misfits |= any(model.config.get(name) != other.config.get(name) for name in SHAPELESS)
    if misfits or any(name not in ours for name in theirs if not name.startswith(CONDITION_PARTS)):
        raise UserError(_other_sizes(model.config, other.config))
    if model.config.condition == "none" and other.config.condition != "none":
        _keep_null(model, other)
        return []
    return new


def _keep_null(model: Any, other: Any) -> None:
    """Put the other's embedding of the null condition, a constant, where the model has one, or add it to the embedded time."""
    if other.config.condition_dropout == 0:
        raise UserError(
            f"the weights to start from know no null {other.config.condition} that a model without condition could go on "
            "from; start from one that was trained with condition none."
        )
    if hasattr(model, "token_embed"):
        model.token_embed.weight.copy_(other.token_embed(None, 1, None))
    elif hasattr(model, "condition_embed"):
        time = model.unet.time_embedding if hasattr(model, "unet") else model.time_embed
        time.linear_2.bias.add_(other.condition_embed(None, 1, None)[0])
    else:
        raise UserError(
            f"a {type(model).__name__} without condition cannot go on from one with condition {other.config.condition!r}; "
            "start from one that was trained with condition none."
        )


def _other_sizes(ours: Any, theirs: Any) -> str:
    """A sentence about the settings in which two configs differ, with the flags that would make them alike."""
    names = [
        name
        for name, value in theirs.items()
        if not name.startswith("_") and name not in FREE and _words(ours.get(name)) != _words(value)
    ]
    if not names:
        return "the weights to start from have other parts, which belong to their condition; start from one with this one's."
    known = {field.name for recipe in RECIPES.values() for field in fields(recipe)}.difference(OF_DATA)
    flags = " ".join(_flag(name, theirs[name]) for name in names if name in known)
    ways = [f"add {flags}"] * bool(flags) + ["train on data of its size"] * any(name in OF_DATA for name in names)
    given = [f"{name} {_words(theirs[name])} (here {_words(ours.get(name))})" for name in names]
    way = ", and ".join(ways) or "start from others"
    return f"the weights to start from are of another kind: {', '.join(given)}; {way}."


def _flag(name: str, value: Any) -> str:
    """What makes a setting this value on the command line."""
    if isinstance(value, bool):
        return flag_of(name if value else f"no_{name}")
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return " ".join([flag_of(name), *map(str, values)])


def _words(value: Any) -> str:
    words = " ".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else str(value)
    return words or "none"
