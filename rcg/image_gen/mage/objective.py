"""What MAGE is trained to do: the masked-token objective."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg.core import draws
from rcg.core.errors import UserError
from rcg.image_gen.conditions import condition_of, dropped
from rcg.image_gen.mage.generator import MageGenerator
from rcg.image_gen.mage.scheduler import MaskGITScheduler
from rcg.image_gen.mage.transformer import MageTransformer

EVAL_BATCH = 32


@torch.compiler.disable
def draw_mask_ratio(mean: float, std: float, low: float, high: float = 1.0) -> float:
    """One draw from a normal distribution truncated to [low, high], by inverse CDF of one CPU uniform (float64)."""
    ends = torch.special.ndtr((torch.tensor([low, high], dtype=torch.float64) - mean) / std)
    u = draws.shared()
    ratio = mean + std * float(torch.special.ndtri(ends[0] + u * (ends[1] - ends[0])))
    return min(max(ratio, low), high)


@torch.compiler.disable  # it is made in pieces, whose number changes with that of the masked tokens
def _loss(model: MageTransformer, hidden: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    return model.token_loss(hidden, targets, label_smoothing)


class MageObjective(nn.Module):
    """Mean label-smoothed cross-entropy of the masked tokens (MAGE arXiv 2211.09117 §3.2, RCG appendix B).

    A random part of each image is masked; its share is drawn once a batch. A fixed share, the least that is ever
    masked (`mask_ratio_min` of the model), is not shown to the encoder at all, so its input has one length throughout.
    See `rcg.image_gen.protocol.Objective`.

    Args:
        model: what is trained.
        mask_ratio_mean, mask_ratio_std: of the truncated normal that the masked share is drawn from (RCG: 0.75, 0.25;
            MAGE: 0.55); None: 0.75, or the least share if that is more.
        label_smoothing: in [0, 1).
        scheduler: exported with the model as its default sampler, and used for previews; the class's defaults if None.
        tokenizer: frozen, of the tokens; needed for images, and for previews.

    Raises:
        UserError: a share out of range.
    """

    field = "tokens"
    grouped = True  # one share of masked tokens for all

    def __init__(
        self,
        model: MageTransformer,
        mask_ratio_mean: float | None = None,
        mask_ratio_std: float = 0.25,
        label_smoothing: float = 0.1,
        *,
        scheduler: MaskGITScheduler | None = None,
        tokenizer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        mask_ratio_min = model.config.mask_ratio_min
        if mask_ratio_mean is None:
            mask_ratio_mean = max(0.75, mask_ratio_min)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing is {label_smoothing}, but it must lie in [0, 1).")
        if not mask_ratio_min <= mask_ratio_mean <= 1:
            raise UserError(f"mask_ratio_mean is {mask_ratio_mean}, but it must lie in [{mask_ratio_min}, 1].")
        if not mask_ratio_std > 0:
            raise UserError(f"mask_ratio_std is {mask_ratio_std}, but it must be above 0.")
        self.model = model
        self.mask_ratio_mean = mask_ratio_mean
        self.mask_ratio_std = mask_ratio_std
        self.mask_ratio_min = mask_ratio_min
        self.label_smoothing = label_smoothing
        self.generator = MageGenerator(model, scheduler or MaskGITScheduler(model.config.mask_token_id), tokenizer)

    def encode(self, images: Tensor) -> Tensor:
        """Tokens int64 [B, h, w] of images; see the protocol."""
        tokenizer = self.generator.tokenizer
        if tokenizer is None:
            raise UserError("the data has no tokens and there is no tokenizer to compute them; give a tokenizer.")
        return tokenizer.encode(images)

    def check_codes(self, codes: Tensor) -> None:
        """Raise `UserError` for a grid of another size, or ids that the model does not know."""
        config, shape = self.model.config, tuple(codes.shape[1:])
        if shape != (config.grid_size, config.grid_size):
            raise UserError(
                f"the tokens form a grid of {' x '.join(map(str, shape))}, but the model works on {config.grid_size} x "
                f"{config.grid_size}; use square images of the size the model was made for."
            )
        if (highest := int(codes.max())) >= config.num_codes:
            raise UserError(f"the data holds code {highest}, but the model knows {config.num_codes} codes (from 0).")

    def identity(self) -> dict[str, Any]:
        """Mask ratio and label smoothing."""
        return {
            "mask_ratio": [self.mask_ratio_mean, self.mask_ratio_std, self.mask_ratio_min],
            "label_smoothing": self.label_smoothing,
        }

    def forward(
        self,
        batch: dict[str, Tensor],
        mask_ratio: float | None = None,
        mask_noise: Tensor | None = None,
        condition_noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            batch: `tokens` int64 [B, h, w]; `representations` float [B, D] or `labels` int64 [B] as the model needs.
            mask_ratio, mask_noise, condition_noise: used in place of random draws, for comparison with the reference:
                the masked share in [mask_ratio_min, 1]; float [B, N], whose smallest entries are dropped and masked;
                float [B], the condition is dropped where it is below the model's `condition_dropout`.

        Returns:
            `loss`, a scalar.
        """
        model, config = self.model, self.model.config
        ids = batch["tokens"].flatten(1)
        samples, tokens = ids.shape
        if mask_ratio is None:
            mask_ratio = draw_mask_ratio(self.mask_ratio_mean, self.mask_ratio_std, self.mask_ratio_min)
        if mask_noise is None:
            mask_noise = draws.uniform(ids.shape, ids.device)
        num_dropped = math.ceil(tokens * self.mask_ratio_min)
        num_masked = max(1, math.ceil(tokens * mask_ratio))
        order = mask_noise.argsort(dim=1)
        drop = dropped(config, samples, ids.device, condition_noise)
        hidden = model.forward_masked(
            ids, order, num_dropped, num_masked, **condition_of(batch, config.condition), drop_condition=drop
        )
        targets = ids.gather(1, order[:, :num_masked])
        return {"loss": _loss(model, hidden, targets, self.label_smoothing)}

    @torch.no_grad()
    def evaluate(self, batch: dict[str, Tensor], seed: int) -> dict[str, float]:
        """How well held-out images are completed, all positions shown to the encoder as in generation.

        The share masked is `mask_ratio_mean`, but one token at least.

        Returns:
            `cross_entropy` (nats a masked token) and `accuracy` in [0, 1]; for a conditional model also
            `cross_entropy_unconditional`, the same with the null condition (meaningful with condition dropout only).
        """
        model, config = self.model, self.model.config
        ids, condition = batch["tokens"].flatten(1), condition_of(batch, config.condition)
        count = max(1, math.ceil(ids.shape[1] * self.mask_ratio_mean))
        noise = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed % 2**63)).to(ids.device)
        masked = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, noise.argsort(dim=1)[:, :count], True)
        sums = {"cross_entropy": 0.0, "accuracy": 0.0}
        if condition and config.condition_dropout > 0:
            sums["cross_entropy_unconditional"] = 0.0
        for chosen in torch.arange(len(ids), device=ids.device).split(EVAL_BATCH):
            shown = ids[chosen].masked_fill(masked[chosen], config.mask_token_id)
            where, targets = masked[chosen], ids[chosen][masked[chosen]]
            logits = model(shown, **{k: v[chosen] for k, v in condition.items()})[where].float()
            sums["cross_entropy"] += F.cross_entropy(logits, targets, reduction="sum").item()
            sums["accuracy"] += (logits.argmax(dim=-1) == targets).sum().item()
            if "cross_entropy_unconditional" in sums:
                logits = model(shown)[where].float()
                sums["cross_entropy_unconditional"] += F.cross_entropy(logits, targets, reduction="sum").item()
        return {name: value / int(masked.sum()) for name, value in sums.items()}
