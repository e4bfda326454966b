"""StableRep and StableRep+ (arXiv 2306.00984): several images of one caption are positives of each other.

SimCLR (arXiv 2002.05709) is the special case of two crops of one image.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from rcg.core.errors import UserError
from rcg.encoders.augment import ViewRecipe, augment
from rcg.encoders.language import LanguageTower
from rcg.encoders.methods import Method, check_head, rows_of, views_of
from rcg.encoders.moco import spread
from rcg.encoders.multi_positive import image_text_loss, multi_positive_loss
from rcg.encoders.ssl_encoder import SSLEncoder

BatchNormOver = Literal["view", "all"]
LANGUAGE_WEIGHT = 0.5
"""Of the two contrastive losses between images and captions together (StableRep+, section 3.4)."""


class MultiPositive(Method):
    """An encoder under the multi-positive loss.

    Args:
        encoder: to train, with a projection head; used itself, not copied.
        recipe: how views are made.
        temperature: τ.
        crops: views of each image.
        batch_norm: BatchNorm counts each view group (the i-th images of all captions) by itself, as the reference does, or
            all images together.
        language: a caption encoder with an image projection, to be trained along (StableRep+).

    Raises:
        UserError: no projection head, or settings out of range.
    """

    name = "stablerep"

    def __init__(
        self,
        encoder: SSLEncoder,
        recipe: ViewRecipe,
        *,
        temperature: float = 0.1,
        crops: int = 1,
        batch_norm: BatchNormOver = "view",
        language: LanguageTower | None = None,
    ) -> None:
        super().__init__()
        check_head(encoder, "this method")
        if temperature <= 0:
            raise UserError(f"the temperature is {temperature}, but it must be above 0.")
        if crops < 1:
            raise UserError(f"{crops} crops are asked for, but there must be at least 1.")
        self.model = encoder
        self.language = language
        self.recipe = recipe
        self.temperature, self.crops, self.batch_norm = temperature, crops, batch_norm
        self._normed_backbone = any(isinstance(m, _BatchNorm) for m in encoder.backbone.modules())

    def prepare(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`view1` … float [B, 3, S, S], `identities` int64 [B] and, with language, `captions`.

        Images that stand alone ([B, 3, S, S]) have their number as identity.
        """
        images = batch["images"] if batch["images"].ndim == 5 else batch["images"][:, None]
        images = images.repeat_interleave(self.crops, dim=1)
        views = augment(images.flatten(0, 1).float() / 255, self.recipe).unflatten(0, images.shape[:2])
        made = {f"view{i}": views[:, i - 1] for i in range(1, views.shape[1] + 1)}
        made["identities"] = batch["identities"] if "identities" in batch else batch["indices"]
        return made | ({"captions": batch["captions"]} if self.language is not None else {})

    def _features(self, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features and projections of each view group."""
        apart = self.batch_norm == "view"
        if apart and self._normed_backbone:
            features = [self.model.features(view) for view in views]
        else:
            features = list(self.model.features(rows_of(views)).unflatten(0, (-1, len(views))).unbind(1))
        if apart:
            return features, [self.model.project(f) for f in features]
        return features, list(self.model.project(torch.cat(features)).split(len(views[0])))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss.

        Args:
            batch: as `prepare` makes it.

        Returns:
            `loss`; `feature_spread`; with language its parts, `contrastive`, `image_to_text` and `text_to_image`.

        Raises:
            UserError: there are no positives, with one view only.
        """
        views = views_of(batch)
        if len(views) < 2:
            raise UserError(
                "multi-positive training needs at least two views of a caption; raise --images-per-caption."
            )
        features, projections = self._features(views)
        identities = batch["identities"].repeat(len(views))
        loss = multi_positive_loss(torch.cat(projections), identities, self.temperature)
        figures = {"feature_spread": spread(features[0])}
        if self.language is None:
            return {"loss": loss, **figures}
        images, texts = self.language.project_images(torch.cat(features)), self.language(batch["captions"])
        scale = self.language.logit_scale.exp()
        to_text, to_image = image_text_loss(images, identities, texts, batch["identities"], scale)
        figures |= {"contrastive": loss, "image_to_text": to_text, "text_to_image": to_image}
        return {"loss": loss + LANGUAGE_WEIGHT * (to_text + to_image), **figures}

    def identity(self) -> dict[str, Any]:
        """Objective and augmentation."""
        settings = {"temperature": self.temperature, "crops": self.crops, "batch_norm": self.batch_norm}
        language = None if self.language is None else self.language.settings()
        return {"multi_positive": settings, "language": language, "augmentation": [dataclasses.asdict(self.recipe)]}
