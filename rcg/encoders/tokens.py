"""A plain ViT's tokens of images of any size, some of whose patches are hidden."""

from __future__ import annotations

from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, cat, nn, where

from rcg.core.errors import UserError
from rcg.encoders.quick import quick_backbone
from rcg.encoders.ssl_encoder import SSLEncoder


def check_patches(encoder: SSLEncoder) -> None:
    """Raise `UserError` if patches do not cover the image: the right and lower edges would go unseen."""
    embed, size = getattr(encoder.backbone, "patch_embed", None), int(encoder.config.image_size)
    if isinstance(embed, PatchEmbed) and not embed.dynamic_img_pad and any(size % side for side in embed.patch_size):
        side = max(embed.patch_size)
        raise UserError(
            f"{encoder.config.arch} has patches of {side} px, which do not divide {size} px; set --image-size to a multiple, "
            f"such as {-(-size // side) * side}."
        )


def check_plain_vit(encoder: SSLEncoder, method: str) -> None:
    """Raise `UserError` unless the backbone is a ViT with a position embedding for each patch of a square, cut from pixels."""
    vit = encoder.backbone
    plain = type(vit) is VisionTransformer and isinstance(vit.pos_embed, nn.Parameter)
    plain = plain and isinstance(vit.patch_embed, PatchEmbed)
    if not plain or vit.patch_embed.grid_size[0] != vit.patch_embed.grid_size[1]:
        raise UserError(f"{method} hides patches of a plain ViT, which {encoder.config.arch} is not; use --arch vit.")
    check_patches(encoder)


def vit_tokens(
    encoder: SSLEncoder, images: Tensor, hidden: Tensor | None = None, mask_token: Tensor | None = None
) -> Tensor:
    """The tokens after the last norm; without hidden patches and at the encoder's size what `backbone.forward_features` gives.

    Args:
        encoder: with a plain ViT, see `check_plain_vit`.
        images: preprocessed, [B, 3, s, s]; s any multiple of the patches' side. The position embedding is resized to it.
        hidden: bool [B, N]: patches in whose place the mask token stands.
        mask_token: [1, 1, C].

    Returns:
        [B, prefix + N, C].
    """
    vit = encoder.backbone
    x = vit.patch_embed.proj(images)
    side, own = x.shape[2], vit.patch_embed.grid_size[0]
    x = vit.patch_embed.norm(x.flatten(2).transpose(1, 2))
    if hidden is not None and mask_token is not None:
        x = where(hidden[:, :, None], mask_token.to(x.dtype), x)
    positions = vit.pos_embed
    if side != own:
        prefix = 0 if vit.no_embed_class else int(vit.num_prefix_tokens)
        positions = resample_abs_pos_embed(positions, [side, side], [own, own], num_prefix_tokens=prefix)
    first = [token.expand(len(x), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
    x = cat([*first, x + positions], 1) if vit.no_embed_class else cat([*first, x], 1) + positions
    with quick_backbone(images):
        tokens: Tensor = vit.norm(vit.blocks(vit.norm_pre(vit.pos_drop(x))))
    return tokens
