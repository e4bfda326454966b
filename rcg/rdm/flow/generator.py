"""Drawing representations along a flow: `FlowMLP` and a flow-matching scheduler as a `RepresentationGenerator`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.flow import FlowSolver, check_scheduler
from rcg.core.precision import in_precision
from rcg.rdm.classes import guided
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
        model = in_precision(self.model, "fp32" if request.exact else request.precision)

        def predict(t: float, x: Tensor, labels: Tensor | None) -> Tensor:
            return cast(Tensor, model(x, t, labels, return_dict=False)[0])

        rows = ROW_BLOCK if request.blocks else None
        velocity = guided(model, predict, request.class_labels, len(request.noise), request.guidance_scale, rows)
        steps = DEFAULT_STEPS if request.num_inference_steps is None else request.num_inference_steps
        solver = FlowSolver(self.scheduler, steps, device)
        x = request.noise.normal(0, config.representation_dim).to(device)
        for i in range(len(solver)):
            x = solver.step(i, velocity(TIME_SCALE * solver.noise_levels[i], x), x)
        if not torch.isfinite(x).all():
            raise UserError(
                "the drawn representations are not finite; the RDM is damaged or its precision too low (while training, lower "
                "--lr)."
            )
        return self.model.denormalize(x)
