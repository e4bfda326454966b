"""How the codebook learns: moving averages of the latents, a k-means++ start, and revival of codes that nobody uses.

The codes are no subject of the gradient: each is the moving average of the latents that chose it (VQ-VAE, arXiv
1711.00937, appendix A.1), which follows a fast-moving encoder better than AdamW does. All state is in persistent buffers,
random draws come from torch's global CPU generator (which the loop seeds for every step), and in runs of several processes
every process computes the same codebook.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rcg.core.kmeans import kmeans
from rcg.core.together import everyones, from_first


def _rows(vectors: Tensor, count: int) -> Tensor:
    """`count` random rows of [N,D], without repetition while they last."""
    order = torch.cat([torch.randperm(len(vectors)) for _ in range(-(-count // len(vectors)))])[:count]
    return vectors[order.to(vectors.device, non_blocking=True)]


class CodebookTrainer(nn.Module):
    """Keeps the statistics of a codebook [K, D] and moves its codes.

    Call `start` once with the first latents, `observe` in every forward pass and `update` after every optimiser step.

    Args:
        num_codes, code_dim: K and D.
        decay: of the moving averages of counts and sums, a step.
        revive_after: a code that no latent chose for this many steps is put on a latent of the current batch.
    """

    counts: Tensor
    sums: Tensor
    idle: Tensor
    grace: Tensor
    started: Tensor
    new_counts: Tensor
    new_sums: Tensor

    def __init__(self, num_codes: int, code_dim: int, decay: float = 0.99, revive_after: int = 50) -> None:
        super().__init__()
        self.decay, self.revive_after = decay, revive_after
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, code_dim))
        self.register_buffer("idle", torch.zeros(num_codes, dtype=torch.int64))  # steps since it was last chosen
        self.register_buffer("grace", torch.zeros(num_codes, dtype=torch.int64))  # steps until it may be revived again
        self.register_buffer("started", torch.tensor(False))
        # What the passes since the last update have seen; nothing when a checkpoint is written, which holds them all the same.
        self.register_buffer("new_counts", torch.zeros(num_codes))
        self.register_buffer("new_sums", torch.zeros(num_codes, code_dim))
        self._candidates = torch.empty(0, code_dim)
        self.begun = False  # what `started` says, without waiting for the device
        self.register_load_state_dict_post_hook(lambda own, _: setattr(own, "begun", bool(own.started)))

    @torch.no_grad()
    def start(self, codes: Tensor, latents: Tensor) -> None:
        """Place the codes [K,D] (in place) on the k-means++ clusters of the first process's latents fp32 [N,D]."""
        latents = _rows(latents, min(len(latents), 16 * len(codes)))
        centres, ids = kmeans(latents, len(codes))
        counts = ids.bincount(minlength=len(codes)).float()
        spread = latents.std(0, correction=0)
        empty = (counts == 0)[:, None]  # coinciding centres: shake them, so that training can tell them apart
        centres = centres + empty * 0.01 * spread * torch.randn(centres.shape).to(centres)
        codes.copy_(centres)
        self.counts.copy_(counts.clamp(min=1))
        self.sums.copy_(centres * self.counts[:, None])
        self.started.fill_(True)
        self.begun = True
        from_first(codes, self.counts, self.sums)

    @torch.no_grad()
    def observe(self, latents: Tensor, ids: Tensor) -> Tensor:
        """Remember which codes int64 [N] the latents fp32 [N,D] chose; returns this pass's own counts fp32 [K]."""
        finite = latents.isfinite().all(1)
        here = torch.zeros_like(self.counts).index_add_(0, ids, finite.float())
        self.new_counts += here
        self.new_sums.index_add_(0, ids, torch.where(finite[:, None], latents, 0.0))
        self._candidates = _rows(latents, min(len(ids), len(self.counts)))
        return here

    @torch.no_grad()
    def update(self, codes: Tensor) -> None:
        """Move the codes [K,D] (in place) by what was observed since the last update, and revive the dead."""
        if not self.begun:
            return
        everyones(self.new_counts)
        everyones(self.new_sums)
        self.counts.lerp_(self.new_counts, 1 - self.decay)
        self.sums.lerp_(self.new_sums, 1 - self.decay)
        self.idle.copy_(torch.where(self.new_counts > 0, 0, self.idle + 1))
        self.grace.copy_((self.grace - 1).clamp(min=0))
        self.new_counts.zero_()
        self.new_sums.zero_()
        alive = self.counts > 1e-6
        codes.copy_(torch.where(alive[:, None], self.sums / self.counts.clamp(min=1e-6)[:, None], codes))
        self._revive(codes)

    def _revive(self, codes: Tensor) -> None:
        """Put dead codes on the first process's candidates, the i-th of them on the i-th; how many there are, nobody asks."""
        if not len(self._candidates):
            return
        candidates = _rows(self._candidates, len(codes))
        from_first(candidates)
        dead = (self.idle >= self.revive_after) & (self.grace == 0)
        fresh = candidates[(dead.cumsum(0) - 1).clamp(min=0)]
        dead &= fresh.isfinite().all(1)
        # as if one in ten of an average code's latents had been there: light enough to move quickly
        weight = 0.1 * self.counts.mean()
        codes.copy_(torch.where(dead[:, None], fresh, codes))
        self.counts.copy_(torch.where(dead, weight, self.counts))
        self.sums.copy_(torch.where(dead[:, None], weight * fresh, self.sums))
        self.grace.masked_fill_(dead, self.revive_after)

    @property
    def used(self) -> Tensor:
        """Share of the codes that some latent chose within the last `revive_after` steps, a scalar in [0,1]."""
        return (self.idle < self.revive_after).float().mean()
