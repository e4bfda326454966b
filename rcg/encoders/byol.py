"""BYOL (arXiv 2006.07733): one view's projection predicts the other's, which a slowly following copy makes; no negatives."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.core.errors import UserError
from rcg.encoders.augment import ViewRecipe, augmented, moco_v3_recipes
from rcg.encoders.heads import stablerep_mlp
from rcg.encoders.moco import follow, momentum_at, spread
from rcg.encoders.ssl_encoder import SSLEncoder


def prediction_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """The squared distance of normalised rows, 2 − 2 cos (equation 2), its mean over rows [N, D]; in float32 or better."""
    with torch.autocast(predictions.device.type, enabled=False):
        p, t = (x if x.dtype == torch.float64 else x.float() for x in (predictions, targets))
        return 2 - 2 * F.cosine_similarity(p, t, dim=1).mean()


class BYOL(nn.Module):
    """An encoder, its slowly following copy (the target network) and a predictor.

    Args:
        encoder: to train, with a projection head; used itself, not copied.
        predictor_hidden_dim: hidden width of the two-layer predictor.
        momentum: of the target network at the start; it rises to 1 in half a cosine.
        recipes: of the two views; by default those of the paper at the encoder's image size.

    Raises:
        UserError: no projection head, or settings out of range.
    """

    def __init__(
        self,
        encoder: SSLEncoder,
        *,
        predictor_hidden_dim: int = 4096,
        momentum: float = 0.996,
        recipes: tuple[ViewRecipe, ViewRecipe] | None = None,
    ) -> None:
        super().__init__()
        if encoder.head is None:
            raise UserError("BYOL trains an encoder with a projection head; give it head_layers of 1 or more.")
        if not 0 <= momentum <= 1:
            raise UserError(f"the momentum is {momentum}, but it must lie in [0, 1].")
        self.name = "byol"
        self.online = encoder
        self.target = copy.deepcopy(encoder).requires_grad_(False)
        dim = encoder.projection_dim
        self.predictor = stablerep_mlp(dim, predictor_hidden_dim, dim, 2)
        self.momentum = momentum
        self.recipes = recipes or moco_v3_recipes(encoder.config.image_size)
        self._settings = {"predictor_hidden_dim": predictor_hidden_dim, "momentum": momentum}

    @property
    def encoder(self) -> SSLEncoder:
        """What is trained and exported: the online network's encoder."""
        return self.online

    def prepare(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Two augmented views, `view1` and `view2`, float [B, 3, S, S] in [0, 1]."""
        return augmented(batch["images"], self.recipes)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The symmetric loss.

        Args:
            batch: `view1` and `view2`, float [B, 3, S, S] in [0, 1].

        Returns:
            `loss`, the sum of both directions, in [0, 8]; `feature_spread`.
        """
        f1, f2 = (self.online.features(batch[view]) for view in ("view1", "view2"))
        q1, q2 = (self.predictor(self.online.project(f)) for f in (f1, f2))
        with torch.no_grad():
            z1, z2 = (self.target.project(self.target.features(batch[view])) for view in ("view1", "view2"))
        return {"loss": prediction_loss(q1, z2) + prediction_loss(q2, z1), "feature_spread": spread(f1)}

    def advance(self, progress: float) -> None:
        """Move the target network. Its BatchNorm statistics are its own, from its own batches."""
        follow(self.target, self.online, momentum_at(progress, self.momentum))

    def identity(self) -> dict[str, Any]:
        """Objective and augmentation."""
        return {"byol": self._settings, "augmentation": [dataclasses.asdict(recipe) for recipe in self.recipes]}

    def export(self, folder: Path) -> None:
        """Write the encoder."""
        self.online.save_pretrained(folder)
