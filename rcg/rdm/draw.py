"""Judging a model: many representations of one seed, and its loss with noise that is always the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rcg.core.rng import Noise, derive_seed
from rcg.rdm.protocol import RepresentationGenerator, Request

AT_ONCE = 1024


def draw_many(
    generator: RepresentationGenerator,
    count: int,
    seed: int,
    labels: Tensor | None = None,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """`count` representations, float32 [count, D] on the model's device; number i follows from the seed and i.

    Args:
        generator: model and scheduler.
        count: how many.
        seed: of all of them.
        labels: int64 [count] for a class-conditional model; None is its null class.
        num_inference_steps, guidance_scale: see `rcg.rdm.protocol.Request`.

    Raises:
        UserError: steps, labels or guidance that the model cannot use, or results that are not finite.
    """
    device = generator.model.device
    made = list[Tensor]()
    for start in range(0, count, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, count))
        request = Request(
            noise=Noise([derive_seed(seed, i) for i in numbers], device),
            class_labels=None if labels is None else labels[start : start + AT_ONCE].to(device),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            blocks=False,
        )
        made.append(generator.draw(request))
    return torch.cat(made)


def mean_loss(
    loss: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor], x: Tensor, times: Tensor, labels: Tensor | None
) -> float:
    """The mean over samples [N, D] of the `loss` of each, a function of some of them, their times, noise and labels."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device)
    total = 0.0
    for i in range(0, len(x), AT_ONCE):
        part = slice(i, i + AT_ONCE)
        losses = loss(x[part], times[part], noise[part], None if labels is None else labels[part])
        total += float(losses.double().sum())
    return total / len(x)
