"""iBOT's loss on hidden patches (arXiv 2111.07832), with Sinkhorn-Knopp for the centre, as SynCLR and DINOv2 have it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from rcg.core.together import everyones, processes
from rcg.encoders.dino import STUDENT_TEMPERATURE, Prototypes
from rcg.encoders.heads import dino_mlp, narrow
from rcg.encoders.methods import follow

SINKHORN_STEPS = 3
"""SynCLR, section 3.3."""
BOTTLENECK = 256
"""Width of the head before the prototypes, and its layers below (iBOT, appendix, as DINO's)."""
HEAD_LAYERS = 3


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: Tensor | float, steps: int = SINKHORN_STEPS) -> Tensor:
    """A teacher's choices that use all prototypes alike (Cuturi 2013; as in SwAV and DINOv2).

    exp(scores / temperature) is scaled in turns until each prototype has as much in all, over the patches of all processes, and
    each patch has 1 in all.

    Args:
        scores: [M, K] of this process, M ≥ 0.
        temperature: of the teacher.
        steps: turns.

    Returns:
        [M, K], rows that sum to 1; in float32 or better.
    """
    with torch.autocast(scores.device.type, enabled=False):
        q = scores if scores.dtype == torch.float64 else scores.float()
        top = q.max() if len(q) else torch.full((), -torch.inf, dtype=q.dtype, device=q.device)
        q = (q - everyones(top.clone(), "MAX")).div_(temperature).exp_()
        tiny = torch.finfo(q.dtype).tiny
        for _ in range(steps):
            q /= everyones(q.sum(0)).clamp_min_(tiny)
            q /= q.sum(1, keepdim=True).clamp_min_(tiny)
        return q


def patch_loss(targets: Tensor, scores: Tensor) -> Tensor:
    """Cross-entropy between the teacher's choice of a hidden patch and the student's (iBOT, equation 2).

    With each process's loss averaged as DDP does, the mean over the hidden patches of all processes, however many each has.

    Args:
        targets: [M, K], without gradient.
        scores: the student's [M, K].

    Returns:
        a scalar; 0 where there is no patch.
    """
    with torch.autocast(scores.device.type, enabled=False):
        s = scores if scores.dtype == torch.float64 else scores.float()
        whole = -(targets * (s / STUDENT_TEMPERATURE).log_softmax(1)).sum()
        count = everyones(torch.full((), float(len(s)), dtype=s.dtype, device=s.device))
        return whole * (processes() / count.clamp_min(1))


def patch_entropy(targets: Tensor) -> Tensor:
    """Mean entropy of the teacher's choices [M, K] in nats: what of `patch_loss` no student can avoid."""
    return -(targets * targets.clamp_min(torch.finfo(targets.dtype).tiny).log()).sum() / max(1, len(targets))


class PatchHead(nn.Module):
    """Tokens of patches → scores of prototypes, [M, C] → [M, K]: DINO's head, whose last layer has weights of norm 1."""

    def __init__(self, in_dim: int, hidden_dim: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = dino_mlp(in_dim, hidden_dim, BOTTLENECK, HEAD_LAYERS).apply(narrow)
        self.prototypes = Prototypes(BOTTLENECK, prototypes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Cosines with the prototypes, in float32 or better."""
        scores: Tensor = self.prototypes(self.mlp(tokens))
        return scores


class PatchPrediction(nn.Module):
    """The heads of student and teacher, and the token that stands for a hidden patch.

    Args:
        width: of the ViT.
        hidden_dim: of the heads.
        prototypes: K.
    """

    def __init__(self, width: int, hidden_dim: int, prototypes: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.student = PatchHead(width, hidden_dim, prototypes)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, tokens: Tensor, wanted: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
        """The loss, and the entropy of the teacher's choices.

        Args:
            tokens: the student's of hidden patches, [M, C].
            wanted: the teacher's of the same patches, which it sees, [M, C].
            temperature: of the teacher.
        """
        with torch.no_grad():
            targets = sinkhorn(self.teacher(wanted), temperature)
            entropy = patch_entropy(targets)
        return patch_loss(targets, self.student(tokens)), entropy

    def advance(self, momentum: float) -> None:
        """Move the teacher's head."""
        follow(self.teacher, self.student, momentum)
