"""Drawing representations along a flow: `FlowMLP` and a flow-matching scheduler as a `RepresentationGenerator`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from rcg.core.blocks import in_blocks
from rcg.core.errors import UserError
from rcg.core.flow import FlowSolver, check_scheduler
from rcg.core.precision import in_precision
from rcg.core.replay import replayed
from rcg.rdm.classes import labels_for, null_labels
from rcg.rdm.flow.flow_mlp import TIME_SCALE, FlowMLP
from rcg.rdm.protocol import ROW_BLOCK, Request

DEFAULT_STEPS = 8


class FlowGenerator:
    """See `rcg.rdm.protocol.RepresentationGenerator`. There is no published sampler: `exact` computes in fp32, that is all.

    Args:
        model: in evaluation mode.
        scheduler: a deterministic flow-matching one of diffusers, see `rcg.core.flow`.
    """

    def __init__(self, model: FlowMLP, scheduler: Any) -> None:
        self.model, self.scheduler = model, scheduler

    @property
    def exact_steps(self) -> int | None:
        return None

    def check(self) -> None:
        """Raise `UserError` for a scheduler of another kind."""
        check_scheduler(self.scheduler)

    @torch.no_grad()
    def draw(self, request: Request) -> Tensor:
        """See the protocol. Guidance is u + guidance_scale · (c − u) of the velocities with class c and null class u."""
        config, device = self.model.config, self.model.device
        labels = labels_for(self.model, request.class_labels, len(request.noise), device)
        null = null_labels(self.model, request.guidance_scale, labels)
        steps = DEFAULT_STEPS if request.num_inference_steps is None else request.num_inference_steps
        solver = FlowSolver(self.scheduler, steps, device)
        model = in_precision(self.model, "fp32" if request.exact else request.precision)
        velocity_at = _evaluator(model, request.blocks)
        x = request.noise.normal(0, config.representation_dim).to(device)
        for i in range(len(solver)):
            velocity = velocity_at(x, solver.noise_levels[i], labels)
            if null is not None:
                without = velocity_at(x, solver.noise_levels[i], null)
                velocity = without + request.guidance_scale * (velocity - without)
            x = solver.step(i, velocity, x)
        if not torch.isfinite(x).all():
            raise UserError(
                "the drawn representations are not finite; the RDM is damaged or its precision too low (while training, lower "
                "--lr)."
            )
        return self.model.denormalize(x)


def _evaluator(model: FlowMLP, blocks: bool) -> Callable[[Tensor, float, Tensor | None], Tensor]:
    """The velocity at x [B, D], a noise level and labels; see `rcg.core.replay`."""

    def predict(t: float, x: Tensor, labels: Tensor | None) -> Tensor:
        return cast(Tensor, model(x, t, labels, return_dict=False)[0])

    quick = replayed(model, predict, "velocity")

    def evaluate(x: Tensor, noise_level: float, labels: Tensor | None) -> Tensor:
        t = TIME_SCALE * noise_level
        return in_blocks(partial(quick, t), ROW_BLOCK, x, labels) if blocks else quick(t, x, labels)

    return evaluate
