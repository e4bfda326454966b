"""From noise and condition to images: the loop around `PixelDiT` and a flow-matching scheduler (`rcg.core.flow`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rcg.core.blocks import in_blocks
from rcg.core.errors import UserError
from rcg.core.flow import FlowSolver
from rcg.image_gen.pixel_dit.transformer import PixelDiT
from rcg.image_gen.protocol import check_condition

Interval = tuple[float, float]

BLOCK_TOKENS = 1024
"""About so many tokens are evaluated together on a CPU, see `rcg.core.blocks.in_blocks`."""
DEFAULT_STEPS = 20


@torch.no_grad()
def sample_images(
    model: PixelDiT,
    scheduler: Any,
    noise: Tensor,
    *,
    representations: Tensor | None = None,
    class_labels: Tensor | None = None,
    num_inference_steps: int = DEFAULT_STEPS,
    guidance_scale: float = 1.0,
    guidance_interval: Interval = (0.0, 1.0),
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Draw images from noise; image i depends on row i of the arguments alone.

    Guidance (arXiv 2207.12598) is x̂ = u + guidance_scale · (c − u) of the predictions c with and u without condition,
    while t lies in an interval (arXiv 2404.07724), and x̂ = c outside. It is the same for images as for velocities.

    Args:
        model: in evaluation mode, or dropout will act.
        scheduler: see `rcg.core.flow.check_scheduler`.
        noise: float32 [B, C, S, S], standard normal.
        representations: float [B, D] on any device, for a representation-conditional model.
        class_labels: int64 [B] in [0, num_classes), for a class-conditional model.
        num_inference_steps: at least 1.
        guidance_scale: 1.0 is off; anything else evaluates the model with and without its condition. Above 1 strengthens
            the condition.
        guidance_interval: (low, high) in [0, 1] of t.
        callback: called as `callback(i, images)` after step i (from 0) with the images as predicted by then.

    Returns:
        float32 [B, C, S, S], about in [−1, 1], on the model's device.

    Raises:
        UserError: a condition is missing or does not fit, guidance is asked of a model that cannot be guided, the number
            of steps cannot be used, or the result is not finite.
    """
    device = model.device
    guided = check_condition(model, representations, class_labels, guidance_scale)
    representations = None if representations is None else representations.to(device)
    class_labels = None if class_labels is None else class_labels.to(device)
    solver = FlowSolver(scheduler, num_inference_steps, device)
    rows = BLOCK_TOKENS // model.num_tokens
    x, done = noise.to(device), 0
    for i in range(len(solver)):
        t = 1 - solver.noise_levels[i]

        def predict(
            x: Tensor, representations: Tensor | None = None, class_labels: Tensor | None = None, t: float = t
        ) -> Tensor:
            return model(x, t, representations, class_labels).float()

        clean = in_blocks(predict, rows, x, representations, class_labels)
        if guided and guidance_interval[0] <= t <= guidance_interval[1]:
            clean = torch.lerp(in_blocks(predict, rows, x), clean, guidance_scale)
        x = solver.step(i, (x - clean) / solver.noise_levels[i], x)
        if callback is not None and solver.ended_step():
            callback(done, clean)
            done += 1
    if not torch.isfinite(x).all():
        raise UserError("the generator's images are not finite; its weights are damaged or the precision too low.")
    return x
