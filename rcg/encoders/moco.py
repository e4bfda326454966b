"""MoCo-v3 (Chen, Xie, He 2021, arXiv 2104.02057): the contrastive objective that trains an `SSLEncoder`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.core.errors import UserError
from rcg.core.together import gather_rows, rank
from rcg.encoders.augment import ViewRecipe, moco_v3_recipes
from rcg.encoders.heads import projection_mlp
from rcg.encoders.methods import Followed
from rcg.encoders.ssl_encoder import SSLEncoder


def sincos_position_embedding(width: int, grid: int, prefix: int = 1, temperature: float = 10000.0) -> Tensor:
    """MoCo-v3's fixed two-dimensional position embedding.

    A quarter of the width each for sin w, cos w, sin h, cos h, as the official code lays them out: there "w" counts
    the rows of patches and "h" the columns. Frequencies fall geometrically from 1 to 1 / temperature.

    Args:
        width: of the ViT; a multiple of 4.
        grid: patches along a side.
        prefix: zero rows in front (the class token).

    Returns:
        [1, prefix + grid², width].

    Raises:
        UserError: the width is no multiple of 4.
    """
    if width % 4:
        raise UserError(f"the encoder's width is {width}, but its position embedding needs a multiple of 4.")
    omega = temperature ** -(torch.arange(width // 4, dtype=torch.float32) / (width // 4))
    row, column = (torch.arange(grid * grid) // grid).float(), (torch.arange(grid * grid) % grid).float()
    w, h = row[:, None] * omega, column[:, None] * omega
    positions = torch.cat([w.sin(), w.cos(), h.sin(), h.cos()], dim=1)
    return torch.cat([torch.zeros(prefix, width), positions])[None]


@torch.no_grad()
def initialize_vit(encoder: SSLEncoder, freeze_patches: bool = True) -> None:
    """Give a ViT MoCo-v3's starting weights; leave a CNN as it is.

    Linear layers: Xavier uniform (query, key and value each as a matrix of its own), zero biases. Class token: normal,
    std 1e-6. Position embedding: fixed sin-cos. Patch projection: uniform and, with `freeze_patches`, never trained
    (section 4.3 of the paper: this keeps training stable).

    Raises:
        UserError: the ViT has a position embedding other than one vector for each class token and patch.
    """
    vit = encoder.backbone
    convolution = getattr(getattr(vit, "patch_embed", None), "proj", None)
    positions = getattr(vit, "pos_embed", None)
    if not isinstance(convolution, nn.Conv2d) or not isinstance(positions, nn.Parameter):
        return
    width, count = positions.shape[-1], positions.shape[1]
    grid = tuple(getattr(vit.patch_embed, "grid_size", None) or (math.isqrt(count),) * 2)
    prefix = count - grid[0] * grid[1]
    if positions.ndim != 3 or grid[0] != grid[1] or prefix not in (0, getattr(vit, "num_prefix_tokens", 0)):
        raise UserError(
            f"{encoder.config.arch} has positions of shape {list(positions.shape)}, no vector for each patch of a square; "
            "choose a plain ViT or a CNN."
        )
    for name, module in vit.named_modules():
        if isinstance(module, nn.Linear):
            fan_out = module.out_features // 3 if name.endswith("qkv") else module.out_features
            bound = math.sqrt(6 / (fan_out + module.in_features))
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if getattr(vit, "cls_token", None) is not None:
        nn.init.normal_(vit.cls_token, std=1e-6)
    positions.copy_(sincos_position_embedding(width, grid[0], prefix))
    positions.requires_grad_(False)
    bound = math.sqrt(6 / (convolution.weight[0].numel() + width))
    nn.init.uniform_(convolution.weight, -bound, bound)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    convolution.requires_grad_(not freeze_patches)


def contrastive_loss(
    queries: Tensor, keys: Tensor, temperature: float, images: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """InfoNCE (equation 1) scaled by 2τ as in the official code: query i belongs to key i of its own process.

    Official batches hold each image once. Where one is there again (more images in a batch than there are), its other keys are
    left out: they are no negatives.

    Args:
        queries: [N, D], with gradient; normalised here.
        keys: [N, D], without gradient; normalised here, then gathered over all processes.
        temperature: τ.
        images: int64 [N], numbers of the images; None: all differ.

    Returns:
        the loss, and the share of queries (no gradient) whose own key is the nearest of all.
    """
    with torch.autocast(queries.device.type, enabled=False):
        q = F.normalize(queries.float(), dim=1)
        k = gather_rows(F.normalize(keys.float(), dim=1))
        logits = q @ k.T / temperature
        target = torch.arange(q.shape[0], device=q.device) + rank() * q.shape[0]
        if images is not None:
            again = images[:, None] == gather_rows(images)
            logits = logits.masked_fill(again.scatter(1, target[:, None], False), -torch.inf)
        loss = F.cross_entropy(logits, target) * (2 * temperature)
        return loss, (logits.detach().argmax(dim=1) == target).float().mean()


def spread(vectors: Tensor) -> Tensor:
    """How far vectors [N, D] are from collapse: std of their normalised entries over the batch, times √D.

    1 when directions are spread evenly, 0 when all vectors point the same way, or there is only one.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        v = F.normalize(vectors.detach().float(), dim=1)
        return v.std(dim=0, correction=min(1, len(v) - 1)).mean() * math.sqrt(v.shape[1])


def effective_rank(vectors: Tensor) -> Tensor:
    """Dimensions that vectors [N, D] really use: (Σλ)² / Σλ² over the eigenvalues λ of their covariance.

    Between 1 (collapsed to a line) and min(D, N − 1). BatchNorm keeps every entry of a projection
    varying, so that a collapse shows here and not in `spread`.
    """
    centred = (vectors - vectors.mean(dim=0)).double()
    gram = centred @ centred.T if len(vectors) < vectors.shape[1] else centred.T @ centred
    return gram.trace() ** 2 / (gram**2).sum().clamp_min(1e-30)


class MoCoV3(Followed):
    """Base encoder, momentum encoder and predictor (algorithm 1 of the paper).

    Args:
        encoder: the encoder to train, with a projection head; used as the base encoder itself, not copied.
        predictor_hidden_dim: hidden width of the two-layer predictor.
        temperature: τ.
        momentum: of the momentum encoder at the start.
        freeze_patches: keep a ViT's random patch projection; does not apply to CNNs.
        recipes: of the two views; by default those of the paper at the encoder's image size.

    Raises:
        UserError: no projection head, or settings out of range.
    """

    name, shown, following = "moco", "base", "momentum_encoder"

    def __init__(
        self,
        encoder: SSLEncoder,
        *,
        predictor_hidden_dim: int = 4096,
        temperature: float = 0.2,
        momentum: float = 0.99,
        freeze_patches: bool = True,
        recipes: tuple[ViewRecipe, ViewRecipe] | None = None,
    ) -> None:
        if temperature <= 0:
            raise UserError(f"the temperature is {temperature}, but it must be above 0.")
        initialize_vit(encoder, freeze_patches)
        super().__init__(encoder, "MoCo-v3", momentum, recipes or moco_v3_recipes(encoder.config.image_size))
        dim = encoder.projection_dim
        self.predictor = projection_mlp(dim, predictor_hidden_dim, dim, 2)
        self.temperature = temperature
        self._settings = {
            "predictor_hidden_dim": predictor_hidden_dim,
            "temperature": temperature,
            "momentum": momentum,
            "freeze_patches": freeze_patches,
        }

    def prepare(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Method.prepare`; with the `indices` of the images, where they have some."""
        return super().prepare(batch) | {name: batch[name] for name in ("indices",) if name in batch}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The symmetric loss.

        Args:
            batch: `view1` and `view2`, float [B, 3, S, S] in [0, 1]; `indices` int64 [B], if any: see `contrastive_loss`.

        Returns:
            `loss`; `accuracy`, the share of queries nearest to their own key; `feature_spread`.
        """
        features, (q1, q2), (k1, k2) = self.both_views(batch)
        images = batch.get("indices")
        loss1, accuracy1 = contrastive_loss(q1, k2, self.temperature, images)
        loss2, accuracy2 = contrastive_loss(q2, k1, self.temperature, images)
        return {"loss": loss1 + loss2, "accuracy": (accuracy1 + accuracy2) / 2, "feature_spread": spread(features)}
