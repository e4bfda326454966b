"""Many representations of one seed, for judging a model."""

from __future__ import annotations

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
