"""Drawing representations as codes: `CodeTransformer` and `CodeScheduler` as a `RepresentationGenerator`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rcg.core.blocks import in_blocks
from rcg.core.errors import UserError
from rcg.core.precision import in_precision
from rcg.rdm.classes import guided
from rcg.rdm.codes.scheduler import CodeScheduler
from rcg.rdm.codes.transformer import CodeTransformer
from rcg.rdm.protocol import Request

BLOCK_TOKENS = 512
"""About so many codes are evaluated together on a CPU, see `rcg.core.blocks.in_blocks`."""


class CodesGenerator:
    """See `rcg.rdm.protocol.RepresentationGenerator`. There is no published sampler: `exact` computes in fp32, that is all.

    Args:
        model: in evaluation mode.
        scheduler: a `CodeScheduler`.
    """

    def __init__(self, model: CodeTransformer, scheduler: Any) -> None:
        self.model, self.scheduler = model, scheduler

    @property
    def exact_steps(self) -> int | None:
        return None

    def check(self) -> None:
        """Raise `UserError` for a scheduler of another kind, or one with more steps than there are codes."""
        if not isinstance(self.scheduler, CodeScheduler):
            raise UserError(
                f"{type(self.scheduler).__name__} does not draw codes; an RDM over codes needs a CodeScheduler."
            )
        self._own_scheduler(None)

    def _own_scheduler(self, steps: int | None) -> CodeScheduler:
        """A private copy, set to a number of steps that has been found possible."""
        scheduler = CodeScheduler(
            num_inference_steps=self.scheduler.config.num_inference_steps if steps is None else steps
        )
        scheduler.masked_counts(int(self.model.config.positions))
        return scheduler

    @torch.no_grad()
    def draw(self, request: Request) -> Tensor:
        """See the protocol. Guidance is u + guidance_scale · (c − u) of the logits with class c and null class u."""
        config, device, noise = self.model.config, self.model.device, request.noise
        model = in_precision(self.model, "fp32" if request.exact else request.precision)

        def predict(_: None, codes: Tensor, labels: Tensor | None) -> Tensor:
            found: Tensor = model(codes, labels)
            return found.float()

        rows = BLOCK_TOKENS // int(config.positions) if request.blocks else None
        predicted = guided(model, predict, request.class_labels, len(noise), request.guidance_scale, rows)
        scheduler = self._own_scheduler(request.num_inference_steps)
        codes = torch.full((len(noise), config.positions), self.model.mask_code, device=device)
        logits = torch.empty(0)
        for i in range(len(scheduler.timesteps)):
            logits = predicted(None, codes)
            codes = scheduler.step(logits, i, codes, noise)
        if not torch.isfinite(logits).all():
            raise UserError(
                "the logits of the codes are not finite; the RDM is damaged or its precision too low (while training, lower "
                "--lr)."
            )
        left = noise.normal(len(scheduler.timesteps), config.representation_dim).to(device)
        return in_blocks(self.model.decode, BLOCK_TOKENS, codes, left)
