"""From noise and condition to images: the loop around a model that predicts the image, and a flow's solver (`rcg.core.flow`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.flow import FlowSolver
from rcg.image_gen.conditions import NO_GUIDANCE, Guidance
from rcg.image_gen.denoising import GuidedModel
from rcg.image_gen.pixels.model import PixelModel

DEFAULT_STEPS = 20


@torch.no_grad()
def sample_images(
    model: PixelModel,
    scheduler: Any,
    noise: Tensor,
    *,
    representations: Tensor | None = None,
    class_labels: Tensor | None = None,
    num_inference_steps: int = DEFAULT_STEPS,
    guidance: Guidance = NO_GUIDANCE,
    guiding_model: PixelModel | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Draw images from noise; image i depends on row i of the arguments alone.

    Guidance is the same for images as for velocities; its progress is t.

    Args:
        model: in evaluation mode, or dropout will act.
        scheduler: see `rcg.core.flow.check_scheduler`.
        noise: float32 [B, C, S, S], standard normal.
        representations: float [B, D] on any device, for a representation-conditional model.
        class_labels: int64 [B] in [0, num_classes), for a class-conditional model.
        num_inference_steps: at least 1.
        guidance: by the null condition, or by the guiding model; where it acts, two models are evaluated.
        guiding_model: a weaker model for images of the same size, in evaluation mode.
        callback: called as `callback(i, images)` after step i (from 0) with the images as predicted by then.

    Returns:
        float32 [B, C, S, S], about in [−1, 1], on the model's device.

    Raises:
        UserError: a condition is missing or does not fit, guidance is asked of a model that cannot be guided, the number
            of steps cannot be used, or the result is not finite.
    """
    device, rows = model.device, model.block_rows
    predict = GuidedModel(model, representations, class_labels, guidance, guiding_model, rows)
    solver = FlowSolver(scheduler, num_inference_steps, device)
    x, done = noise.to(device), 0
    for i in range(len(solver)):
        t = 1 - solver.noise_levels[i]
        clean = predict(x, t, progress=t)
        x = solver.step(i, (x - clean) / solver.noise_levels[i], x)
        if callback is not None and solver.ended_step():
            callback(done, clean)
            done += 1
    if not torch.isfinite(x).all():
        raise UserError("the generator's images are not finite; its weights are damaged or the precision too low.")
    return x
