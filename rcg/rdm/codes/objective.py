"""What a transformer over codes is trained to do: to tell the finer codes from the coarser ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg.core import draws
from rcg.rdm.classes import training_labels
from rcg.rdm.codes.generator import CodesGenerator
from rcg.rdm.codes.scheduler import CodeScheduler
from rcg.rdm.codes.transformer import CodeTransformer

DEFAULT_STEPS = 8
EVAL_BATCH = 256
FIT_SAMPLES = 20_000
SAMPLES_PER_CODE = 8


class CodesObjective(nn.Module):
    """Cross-entropy of the codes that are not given, as MaskGIT's (arXiv 2202.04200, §3.1), but with the first ones given.

    Of the N codes of a sample the first floor(N · u) are given and the others masked, u uniform in [0, 1) and spread evenly
    over the batch. Its loss is the sum over the masked ones by (N + 1) / 2, their mean number: nats a code. See
    `rcg.rdm.protocol.Objective`.

    Args:
        rdm: the model, trained here; its quantiser is fitted at the start and stays.
    """

    def __init__(self, rdm: CodeTransformer) -> None:
        super().__init__()
        self.rdm = rdm
        self.fit_samples = max(FIT_SAMPLES, SAMPLES_PER_CODE * int(rdm.config.num_codes))

    @property
    def generator(self) -> CodesGenerator:
        """The model with its few-step scheduler."""
        return CodesGenerator(self.rdm, CodeScheduler(min(DEFAULT_STEPS, int(self.rdm.config.positions))))

    def fit(self, representations: Tensor) -> None:
        """Fit the quantiser, and start the embeddings from it."""
        self.rdm.fit(representations)

    def identity(self) -> dict[str, Any]:
        """Nothing beside the model's configuration; the quantiser is in the checkpoint."""
        return {}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`loss`, and `accuracy` on masked codes, of a batch with "representations" [B, D] (and "labels" [B])."""
        representations = batch["representations"]
        count, device = len(representations), representations.device
        labels = training_labels(self.rdm, batch)
        quantiles = draws.stratified(count, device)
        losses, hits = self.losses(representations, quantiles, labels)
        return {"loss": losses.mean(), "accuracy": hits.mean()}

    def losses(self, representations: Tensor, quantiles: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of each sample.

        Args:
            representations: [B, D].
            quantiles: [B] in [0, 1), u above: 0 masks all codes.
            labels: int64 [B] for a class-conditional model.

        Returns:
            the cross-entropy (see the class) and the share of right guesses on masked codes, [B] each.
        """
        with torch.no_grad(), torch.autocast(representations.device.type, enabled=False):
            codes = self.rdm.encode(representations)
        positions = codes.shape[1]
        given = (positions * quantiles).long().clamp_max(positions - 1)[:, None]
        masked = torch.arange(positions, device=codes.device) >= given
        logits = self.rdm(codes.masked_fill(masked, self.rdm.mask_code), labels).float()
        loss = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
        hits = (logits.detach().argmax(dim=-1) == codes) & masked
        return (loss * masked).sum(dim=1) * (2 / (positions + 1)), hits.sum(dim=1) / masked.sum(dim=1)

    @torch.no_grad()
    def evaluate(self, representations: Tensor, labels: Tensor | None) -> dict[str, float]:
        """`val_loss` and `val_accuracy`, with masks spread evenly over their distribution and the same at every call."""
        count, device = len(representations), representations.device
        quantiles = (torch.arange(count, device=device) + 0.5) / count
        loss = accuracy = 0.0
        for i in range(0, count, EVAL_BATCH):
            part = slice(i, i + EVAL_BATCH)
            some = None if labels is None else labels[part]
            losses, hits = self.losses(representations[part], quantiles[part], some)
            loss, accuracy = loss + float(losses.double().sum()), accuracy + float(hits.double().sum())
        return {"val_loss": loss / count, "val_accuracy": accuracy / count}

    @torch.no_grad()
    def reconstruct(self, representations: Tensor) -> Tensor | None:
        """Real representations [N, D] through the codes and back, with what the codes leave open drawn anew."""
        noise = torch.randn(representations.shape, generator=torch.Generator().manual_seed(1)).to(representations)
        return self.rdm.decode(self.rdm.encode(representations), noise)
