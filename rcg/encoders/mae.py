"""Masked autoencoders (arXiv 2111.06377): a ViT sees a quarter of an image's patches, a small decoder paints the others."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from rcg.core.draws import uniform
from rcg.core.errors import UserError
from rcg.encoders.augment import ViewRecipe
from rcg.encoders.methods import Method
from rcg.encoders.moco import initialize_vit, sincos_position_embedding, spread
from rcg.encoders.quick import quick_backbone
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.encoders.tokens import check_plain_vit


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Images [B, 3, H, W] → their patches in rows, [B, H·W / patch², patch² · 3]: rows, columns, channels of each."""
    x = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # B 3 h p w q
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def reconstruction_loss(predictions: Tensor, targets: Tensor, hidden: Tensor, normalize: bool = True) -> Tensor:
    """Mean squared error over the hidden patches; in float32 or better.

    Args:
        predictions, targets: [B, N, P].
        hidden: bool [B, N]; as many in every row.
        normalize: targets are each patch's own pixels with mean 0 and (unbiased) variance 1.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        p, t = (x if x.dtype == torch.float64 else x.float() for x in (predictions, targets))
        if normalize:
            t = (t - t.mean(2, keepdim=True)) / (t.var(2, keepdim=True) + 1e-6).sqrt()
        errors = (p - t).square().mean(2)
        return (errors * hidden).sum() / hidden.sum()


class MAE(Method):
    """An encoder without a projection head, and a decoder, which serves the training alone and is not exported.

    Args:
        encoder: to train, with a plain ViT; used itself, not copied.
        recipe: how views are made: crops and flips.
        mask_ratio: share of the patches that are hidden.
        decoder_width, decoder_depth: of the decoder.
        normalize: see `reconstruction_loss`.

    Raises:
        UserError: an encoder with a head or without patches, or settings out of range.
    """

    name, compares = "mae", False

    def __init__(
        self,
        encoder: SSLEncoder,
        recipe: ViewRecipe,
        *,
        mask_ratio: float = 0.75,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if encoder.head is not None:
            raise UserError(
                "MAE trains no projection head; set --head-layers 0, and the features are the representation."
            )
        vit = encoder.backbone
        check_plain_vit(encoder, "MAE")
        if not isinstance(vit.fc_norm, nn.Identity) or vit.attn_pool is not None:
            raise UserError(
                f"{encoder.config.arch} ends in a norm after pooling, or pools by attention, which MAE leaves untrained; set "
                '--arch-kwargs \'{"global_pool": "avg", "fc_norm": false}\'.'
            )
        initialize_vit(encoder, freeze_patches=False)
        self.patch = int(vit.patch_embed.patch_size[0])
        grid = int(encoder.config.image_size) // self.patch
        self.patches = grid * grid
        self.visible = self.patches - round(mask_ratio * self.patches)
        if not 0 < self.visible < self.patches:
            raise UserError(
                f"of {self.patches} patches, a mask ratio of {mask_ratio} leaves {self.visible} visible; give another one, or "
                "smaller patches."
            )
        if decoder_width % 32:
            raise UserError(f"the decoder's width is {decoder_width}, but it must be a multiple of 32.")
        self.model, self.recipes, self.normalize = encoder, (recipe,), normalize
        self.prefix = int(vit.num_prefix_tokens)
        self.embed = nn.Linear(encoder.feature_dim, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.positions: Tensor
        self.register_buffer("positions", sincos_position_embedding(decoder_width, grid, self.prefix), persistent=False)
        heads = decoder_width // 32
        self.blocks = nn.Sequential(*[Block(decoder_width, heads, qkv_bias=True) for _ in range(decoder_depth)])
        self.norm = nn.LayerNorm(decoder_width)
        self.paint = nn.Linear(decoder_width, 3 * self.patch**2)
        for module in (self.embed, self.blocks, self.paint):
            module.apply(_xavier)
        nn.init.normal_(self.mask_token, std=0.02)
        self._settings = {"mask_ratio": mask_ratio, "decoder_width": decoder_width, "decoder_depth": decoder_depth,
                          "normalize": normalize}  # fmt: skip

    def prepare(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`view1` float [B, 3, S, S] in [0, 1], and `order` int64 [B, N]: the patches, the visible ones first."""
        made = super().prepare(batch)
        view = made["view1"]
        return {**made, "order": uniform((len(view), self.patches), view.device).argsort(1)}

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """The encoder's tokens of some patches: preprocessed images and places [B, V] → [B, prefix + V, C]."""
        vit = self.model.backbone
        tokens = vit._pos_embed(vit.patch_embed(images))
        kept = tokens[:, self.prefix :].gather(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]))
        with quick_backbone(images):
            return vit.norm(vit.blocks(vit.norm_pre(torch.cat([tokens[:, : self.prefix], kept], dim=1))))

    def decode(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Patches painted from the tokens of the visible ones: → [B, N, patch² · 3], in the image's order."""
        x = self.embed(tokens)
        hidden = self.mask_token.expand(len(x), self.patches - self.visible, -1).to(x.dtype)
        placed = torch.cat([x[:, self.prefix :], hidden], dim=1)
        placed = placed.gather(1, order.argsort(1)[:, :, None].expand_as(placed))
        x = torch.cat([x[:, : self.prefix], placed], dim=1) + self.positions
        with quick_backbone(x):
            return self.paint(self.norm(self.blocks(x)))[:, self.prefix :]

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss.

        Args:
            batch: as `prepare` makes it.

        Returns:
            `loss`; `feature_spread`, of the class token (or the mean) of the visible patches.
        """
        images, order = self.model.preprocess(batch["view1"]), batch["order"]
        tokens = self.encode(images, order[:, : self.visible])
        painted = self.decode(tokens, order)
        hidden = torch.ones_like(order, dtype=torch.bool).scatter(1, order[:, : self.visible], False)
        loss = reconstruction_loss(painted, patches_of(images, self.patch), hidden, self.normalize)
        seen = tokens[:, 0] if self.prefix else tokens.mean(1)
        return {"loss": loss, "feature_spread": spread(seen)}


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
