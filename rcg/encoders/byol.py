"""BYOL (arXiv 2006.07733): one view's projection predicts the other's, which a slowly following copy makes; no negatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg.encoders.augment import ViewRecipe, moco_v3_recipes
from rcg.encoders.heads import stablerep_mlp
from rcg.encoders.methods import Followed
from rcg.encoders.moco import spread
from rcg.encoders.ssl_encoder import SSLEncoder


def prediction_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """The squared distance of normalised rows, 2 − 2 cos (equation 2), its mean over rows [N, D]; in float32 or better."""
    with torch.autocast(predictions.device.type, enabled=False):
        p, t = (x if x.dtype == torch.float64 else x.float() for x in (predictions, targets))
        return 2 - 2 * F.cosine_similarity(p, t, dim=1).mean()


class BYOL(Followed):
    """An encoder, its slowly following copy (the target network) and a predictor.

    Args:
        encoder: to train, with a projection head; used itself, not copied.
        predictor_hidden_dim: hidden width of the two-layer predictor.
        momentum: of the target network at the start; it rises to 1 in half a cosine.
        recipes: of the two views; by default those of the paper at the encoder's image size.

    Raises:
        UserError: no projection head, or settings out of range.
    """

    name, shown, following = "byol", "online", "target"

    def __init__(
        self,
        encoder: SSLEncoder,
        *,
        predictor_hidden_dim: int = 4096,
        momentum: float = 0.996,
        recipes: tuple[ViewRecipe, ViewRecipe] | None = None,
    ) -> None:
        super().__init__(encoder, "BYOL", momentum, recipes or moco_v3_recipes(encoder.config.image_size))
        dim = encoder.projection_dim
        self.predictor = stablerep_mlp(dim, predictor_hidden_dim, dim, 2)
        self._settings = {"predictor_hidden_dim": predictor_hidden_dim, "momentum": momentum}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The symmetric loss.

        Args:
            batch: `view1` and `view2`, float [B, 3, S, S] in [0, 1].

        Returns:
            `loss`, the sum of both directions, in [0, 8]; `feature_spread`.
        """
        features, (q1, q2), (z1, z2) = self.both_views(batch)
        return {"loss": prediction_loss(q1, z2) + prediction_loss(q2, z1), "feature_spread": spread(features)}
