"""Drawing representations as codes: `CodeTransformer` and `CodeScheduler` as a `RepresentationGenerator`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rcg.core.blocks import in_blocks
from rcg.core.errors import UserError
from rcg.core.precision import in_precision
from rcg.core.replay import replayed
from rcg.rdm.classes import labels_for, null_labels
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
        labels = labels_for(self.model, request.class_labels, len(noise), device)
        null = null_labels(self.model, request.guidance_scale, labels)
        scheduler = self._own_scheduler(request.num_inference_steps)
        model = in_precision(self.model, "fp32" if request.exact else request.precision)
        logits_of = _evaluator(model, request.blocks)
        codes = torch.full((len(noise), config.positions), self.model.mask_code, device=device)
        logits = torch.empty(0)
        for i in range(len(scheduler.timesteps)):
            logits = logits_of(codes, labels)
            if null is not None:
                without = logits_of(codes, null)
                logits = without + request.guidance_scale * (logits - without)
            codes = scheduler.step(logits, i, codes, noise)
        if not torch.isfinite(logits).all():
            raise UserError(
                "the logits of the codes are not finite; the RDM is damaged or its precision too low (while training, lower "
                "--lr)."
            )
        left = noise.normal(len(scheduler.timesteps), config.representation_dim).to(device)
        return in_blocks(self.model.decode, BLOCK_TOKENS, codes, left)


def _evaluator(model: CodeTransformer, blocks: bool) -> Callable[[Tensor, Tensor | None], Tensor]:
    """The logits of codes [B, N] and labels; see `rcg.core.replay`."""

    def predict(codes: Tensor, labels: Tensor | None) -> Tensor:
        logits: Tensor = model(codes, labels)
        return logits.float()

    quick = replayed(model, predict, "logits")
    rows = BLOCK_TOKENS // int(model.config.positions)
    return (lambda codes, labels: in_blocks(quick, rows, codes, labels)) if blocks else quick
