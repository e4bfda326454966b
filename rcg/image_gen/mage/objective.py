"""What MAGE is trained to do: the masked-token objective."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.image_gen.mage.transformer import MageTransformer


@torch.compiler.disable
def draw_mask_ratio(mean: float, std: float, low: float, high: float = 1.0) -> float:
    """One draw from a normal distribution truncated to [low, high], by inverse CDF of one CPU uniform (float64)."""
    ends = torch.special.ndtr((torch.tensor([low, high], dtype=torch.float64) - mean) / std)
    u = torch.rand((), dtype=torch.float64)
    ratio = mean + std * float(torch.special.ndtri(ends[0] + u * (ends[1] - ends[0])))
    return min(max(ratio, low), high)


class MageObjective(nn.Module):
    """Mean label-smoothed cross-entropy of the masked tokens (MAGE arXiv 2211.09117 §3.2, RCG appendix B).

    A random part of each image is masked; its share is drawn once a batch. A fixed share, the least that is ever
    masked, is not shown to the encoder at all, so its input has one length throughout.

    Args:
        model: what is trained.
        mask_ratio_mean, mask_ratio_std: of the truncated normal that the masked share is drawn from (RCG: 0.75, 0.25;
            MAGE: 0.55).
        mask_ratio_min: least masked share and share of tokens dropped from the encoder, in [0, 1).
        label_smoothing: in [0, 1).

    Raises:
        UserError: a share out of range.
    """

    def __init__(
        self,
        model: MageTransformer,
        mask_ratio_mean: float = 0.75,
        mask_ratio_std: float = 0.25,
        mask_ratio_min: float = 0.5,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        for name, share in (("mask_ratio_min", mask_ratio_min), ("label_smoothing", label_smoothing)):
            if not 0 <= share < 1:
                raise UserError(f"{name} is {share}, but it must lie in [0, 1).")
        if not mask_ratio_min <= mask_ratio_mean <= 1:
            raise UserError(f"mask_ratio_mean is {mask_ratio_mean}, but it must lie in [{mask_ratio_min}, 1].")
        if not mask_ratio_std > 0:
            raise UserError(f"mask_ratio_std is {mask_ratio_std}, but it must be above 0.")
        self.model = model
        self.mask_ratio_mean = mask_ratio_mean
        self.mask_ratio_std = mask_ratio_std
        self.mask_ratio_min = mask_ratio_min
        self.label_smoothing = label_smoothing

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
            mask_noise = torch.rand(ids.shape, device=ids.device)
        num_dropped = math.ceil(tokens * self.mask_ratio_min)
        num_masked = max(1, math.ceil(tokens * mask_ratio))
        order = mask_noise.argsort(dim=1)
        drop = None
        if config.condition != "none" and config.condition_dropout > 0:
            if condition_noise is None:
                condition_noise = torch.rand(samples, device=ids.device)
            drop = condition_noise < config.condition_dropout
        logits = model.forward_masked(
            ids, order, num_dropped, num_masked, **condition_of(batch, model), drop_condition=drop
        )
        targets = ids.gather(1, order[:, :num_masked])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), label_smoothing=self.label_smoothing)
        return {"loss": loss}


def condition_of(batch: dict[str, Tensor], model: MageTransformer) -> dict[str, Tensor]:
    """The part of a batch that the model is conditioned on, as arguments of its methods."""
    if model.config.condition == "representation":
        return {"representations": batch["representations"]}
    if model.config.condition == "class":
        return {"class_labels": batch["labels"]}
    return {}
