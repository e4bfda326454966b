"""A caption encoder, and CLIP (arXiv 2103.00020): images and their captions meet in one space.

Captions are read as UTF-8 bytes, in any language; there is no vocabulary to fetch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.core.captions import caption_bytes
from rcg.core.component import Settled
from rcg.core.errors import UserError
from rcg.core.schema import Depth, Range, Size, check_arguments
from rcg.encoders.augment import ViewRecipe, augment
from rcg.encoders.methods import Method
from rcg.encoders.moco import spread
from rcg.encoders.multi_positive import image_text_loss
from rcg.encoders.ssl_encoder import SSLEncoder

START, END, WORDS = 256, 257, 258
MAX_SCALE = 100.0


class LanguageTower(Settled, ModelMixin, ConfigMixin):
    """Captions → vectors: a causal transformer over bytes, read where the caption ends, as in CLIP.

    Also holds what belongs to image and text together: the learned scale of their cosines and, for encoders whose own head
    serves another loss (StableRep+), the linear projection of image features.

    Args:
        dim: of the space where images and captions meet.
        width, depth, num_heads: of the transformer.
        caption_bytes: longest caption.
        image_dim: width of the image features that it projects; 0: images come projected.

    Raises:
        UserError: heads do not divide the width.
    """

    @register_to_config
    def __init__(
        self,
        dim: Size = 512,
        width: Size = 512,
        depth: Depth = 12,
        num_heads: Depth = 8,
        caption_bytes: Size = 192,
        image_dim: Annotated[int, Range(0, 65536)] = 0,
    ) -> None:
        super().__init__()
        check_arguments(self)
        if width % num_heads:
            raise UserError(f"{num_heads} heads do not divide the caption encoder's width {width}; give other ones.")
        self.embedding = nn.Embedding(WORDS, width)
        self.positions = nn.Parameter(torch.randn(caption_bytes + 2, width) * 0.01)
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.projection = nn.Linear(width, dim, bias=False)
        self.image_projection = nn.Linear(image_dim, dim, bias=False) if image_dim else None
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._initialize()
        self.eval()

    def _initialize(self) -> None:
        """CLIP's: normal, with deviations that fall with width and depth."""
        width, depth = int(self.config.width), int(self.config.depth)
        nn.init.normal_(self.embedding.weight, std=0.02)
        for layer in self.transformer.layers:
            nn.init.normal_(layer.self_attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(layer.self_attn.out_proj.weight, std=width**-0.5 * (2 * depth) ** -0.5)
            nn.init.normal_(layer.linear1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(layer.linear2.weight, std=width**-0.5 * (2 * depth) ** -0.5)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        if self.image_projection is not None:
            nn.init.normal_(self.image_projection.weight, std=self.image_projection.in_features**-0.5)

    def forward(self, captions: Tensor) -> Tensor:
        """uint8 [B, caption_bytes], see `caption_bytes` → [B, dim], not normalised."""
        ids = captions.long()
        length = (ids != 0).sum(1)
        words = F.pad(F.pad(ids, (1, 0), value=START), (0, 1))
        places = torch.arange(words.shape[1], device=ids.device)
        words = words.masked_fill(places == length[:, None] + 1, END)
        x = self.embedding(words) + self.positions[: words.shape[1]]
        later = torch.full((words.shape[1],) * 2, -torch.inf, device=x.device, dtype=x.dtype).triu(1)
        x = self.transformer(x, mask=later, is_causal=True)
        at = torch.arange(len(x), device=x.device)
        return self.projection(x[at, length + 1])

    def project_images(self, features: Tensor) -> Tensor:
        """Image features [B, image_dim] → [B, dim]; as they are where they come projected."""
        return features if self.image_projection is None else self.image_projection(features)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Captions → normalised vectors, float32 [B, dim]."""
        given = torch.from_numpy(caption_bytes(texts, int(self.config.caption_bytes))).to(self.device)
        return F.normalize(self(given).float(), dim=1)

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the scale in [1, 100]."""
        self.logit_scale.clamp_(0, math.log(MAX_SCALE))

    def settings(self) -> dict[str, Any]:
        """Its configuration, as JSON."""
        return {k: v for k, v in dict(self.config).items() if not k.startswith("_")}


class CLIP(Method):
    """An encoder and a caption encoder under CLIP's loss; captions that are equal are no negatives of each other.

    Args:
        encoder: to train, with a linear head; used itself, not copied.
        language: the caption encoder; its `dim` is the head's.
        recipe: how views are made.

    Raises:
        UserError: the widths differ.
    """

    name = "clip"

    def __init__(self, encoder: SSLEncoder, language: LanguageTower, recipe: ViewRecipe) -> None:
        super().__init__()
        if encoder.head is None or encoder.projection_dim != language.config.dim:
            raise UserError(
                f"the image projection has {encoder.projection_dim} numbers and the caption's {language.config.dim}; "
                "give both the same."
            )
        self.model, self.language, self.recipe = encoder, language, recipe

    def prepare(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`view1` float [B, 3, S, S], `identities` and `captions`."""
        view = augment(batch["images"][:, 0].float() / 255, self.recipe)
        return {"view1": view, "identities": batch["identities"], "captions": batch["captions"]}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`loss`, the mean of `image_to_text` and `text_to_image`; `feature_spread`."""
        features = self.model.features(batch["view1"])
        images, texts, ids = self.model.project(features), self.language(batch["captions"]), batch["identities"]
        to_text, to_image = image_text_loss(images, ids, texts, ids, self.language.logit_scale.exp())
        figures = {"image_to_text": to_text, "text_to_image": to_image, "feature_spread": spread(features)}
        return {"loss": (to_text + to_image) / 2, **figures}

    def identity(self) -> dict[str, Any]:
        """Objective and augmentation."""
        return {"clip": {}, "language": self.language.settings(), "augmentation": [dataclasses.asdict(self.recipe)]}
