"""Classes of a class-conditional RDM, the same for every method: labels checked, the null class, guidance.

`rdm` is a model as `rcg.rdm.protocol.RepresentationGenerator` describes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from rcg.core import draws
from rcg.core.blocks import in_blocks
from rcg.core.errors import UserError
from rcg.core.replay import replayed


def check_classes(num_classes: int, class_dropout: float) -> None:
    """Raise `UserError` for a share of labels to drop where there are none."""
    if class_dropout and not num_classes:
        raise UserError("class_dropout needs num_classes: an unconditional model has no labels to drop.")


class Classed:
    """A model whose config has `num_classes` and `class_dropout`."""

    @property
    def null_class(self) -> int | None:
        """The label that means "no class", or None where the model has no such label (then there is no guidance)."""
        config = cast(Any, self).config
        return int(config.num_classes) if config.class_dropout > 0 else None


def check_labels(rdm: Any, class_labels: Tensor) -> None:
    """Raise `UserError` if a label [B] is not a class of the model (the null class is allowed)."""
    classes, null = int(rdm.config.num_classes), rdm.null_class
    if class_labels.is_floating_point() or class_labels.is_complex():
        raise UserError(f"class labels must be whole numbers, not {class_labels.dtype}.")
    if classes == 0:
        raise UserError("this representation model is unconditional; leave class_labels out.")
    last = classes - 1 if null is None else null
    outside = class_labels[(class_labels < 0) | (class_labels > last)]
    if outside.numel():
        raise UserError(f"class label {int(outside[0])} is out of range: this model knows 0 to {classes - 1}.")


def given_or_null(rdm: Any, class_labels: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
    """The labels [B] of a forward pass, on the device; the null class for None, None for an unconditional model.

    Labels on the CPU are checked; those of a GPU are not read back (see `labels_for`, which a sampler calls once).

    Raises:
        UserError: labels that do not fit, or none for a model that has no null class.
    """
    if rdm.config.num_classes == 0:
        if class_labels is not None:
            raise UserError("this representation model is unconditional; leave class_labels out.")
        return None
    if class_labels is None:
        if rdm.null_class is None:
            raise UserError("this representation model is class-conditional and has no null class; give class_labels.")
        return torch.full((batch,), rdm.null_class, device=device)
    if class_labels.device.type == "cpu" and not torch.compiler.is_compiling():
        check_labels(rdm, class_labels)
    return class_labels.to(device)


def labels_for(
    rdm: Any, class_labels: Tensor | Sequence[int] | int | None, count: int, device: torch.device
) -> Tensor | None:
    """The labels int64 [B] of B samples to draw: one for all, or one for each; None is the null class.

    Raises:
        UserError: labels that do not fit, or none for a model that has no null class.
    """
    classes, null = int(rdm.config.num_classes), rdm.null_class
    if class_labels is None:
        if classes and null is None:
            raise UserError(
                f"this representation model is class-conditional; give class_labels from 0 to {classes - 1}."
            )
        return torch.full((count,), null).to(device) if classes and null is not None else None
    labels = torch.as_tensor(class_labels).cpu()
    if labels.ndim == 0:
        labels = labels.expand(count)
    if labels.shape != (count,):
        raise UserError(
            f"class_labels has shape {tuple(labels.shape)}; give one label, or one for each of the {count} samples."
        )
    check_labels(rdm, labels)
    return labels.long().to(device)


def null_labels(rdm: Any, guidance_scale: float, labels: Tensor | None) -> Tensor | None:
    """What guidance evaluates the model with a second time: the null class [B]; None where nothing is guided.

    Raises:
        UserError: guidance (a scale other than 1.0) that the model cannot do, or that has no class to guide towards.
    """
    if guidance_scale == 1.0:
        return None
    if not math.isfinite(guidance_scale):
        raise UserError(f"guidance_scale is {guidance_scale}, but it must be a number (1.0 is off).")
    null = rdm.null_class
    if null is None:
        why = "unconditional" if labels is None else "without a null class (train it with class_dropout above 0)"
        raise UserError(
            f"guidance_scale {guidance_scale} cannot be used: this representation model is {why}; leave it at 1.0."
        )
    assert labels is not None  # a model with a null class has classes
    if bool((labels == null).all()):
        raise UserError(
            f"guidance_scale {guidance_scale} needs class_labels to guide towards; give some or leave it at 1.0."
        )
    return torch.full_like(labels, null)


def guided(
    rdm: Any,
    predict: Callable[[Any, Tensor, Tensor | None], Tensor],
    class_labels: Tensor | Sequence[int] | int | None,
    count: int,
    guidance_scale: float,
    rows: int | None,
) -> Callable[[Any, Tensor], Tensor]:
    """What a model predicts of x at a time: u + g · (c − u) of the predictions with class c and null class u.

    Args:
        rdm: the model that predicts.
        predict: what it predicts at a time (None where there are none) of x [B, …] with labels; see `rcg.core.replay`.
        class_labels: see `labels_for`.
        count: B.
        guidance_scale: g; 1.0 is off.
        rows: evaluated together on a CPU, see `rcg.core.blocks.in_blocks`; None takes the batch as it is.

    Raises:
        UserError: labels or guidance that the model cannot use.
    """
    labels = labels_for(rdm, class_labels, count, rdm.device)
    null = null_labels(rdm, guidance_scale, labels)
    quick = replayed(rdm, predict, "prediction")

    def with_labels(t: Any, x: Tensor, labels: Tensor | None) -> Tensor:
        return quick(t, x, labels) if rows is None else in_blocks(partial(quick, t), rows, x, labels)

    def predicted(t: Any, x: Tensor) -> Tensor:
        prediction = with_labels(t, x, labels)
        if null is None:
            return prediction
        without = with_labels(t, x, null)
        return without + guidance_scale * (prediction - without)

    return predicted


def training_labels(rdm: Any, batch: dict[str, Tensor]) -> Tensor | None:
    """The "labels" [B] of a batch, a share of them (`class_dropout`) the null class; None for an unconditional model."""
    if not rdm.config.num_classes:
        return None
    labels, null = batch["labels"], rdm.null_class
    if null is None:
        return labels
    dropped = draws.uniform(labels.shape, labels.device) < rdm.config.class_dropout
    return torch.where(dropped, null, labels)
