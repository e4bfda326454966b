"""What an encoder that is trained from scratch looks like. Knows no models, so that commands start quickly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from rcg.core.errors import UserError
from rcg.core.schema import Depth, Range, Size, flag_of

SMALL = 64
"""Up to this many pixels the small ViT is the default."""


@dataclass
class EncoderShape:
    """Sizes of backbone and projection head. What is None follows from the image size."""

    image_size: Size = 32
    """Side in pixels at which the encoder works."""
    arch: str = "vit"
    """`vit`, shaped by the flags below, or the timm name of any ViT or CNN."""
    arch_kwargs: str = "{}"
    """Overrides for another timm architecture as JSON, such as '{"channels": [32, 64, 128, 256]}' for a ResNet."""
    width: Size | None = None
    """Width of the vit (default: 192 up to 64 px, 384 above)."""
    depth: Depth | None = None
    """Blocks of the vit (default: 9 up to 64 px, 12 above)."""
    heads: Depth | None = None
    """Attention heads of the vit (default: width / 32, as in MoCo-v3's ViT-S)."""
    patch_size: Size | None = None
    """Side of the vit's patches in pixels (default: about an eighth of the image up to 64 px, about 16 above)."""
    representation_dim: Size = 256
    """Width of the projection, which is the representation unless --parts says otherwise."""
    head_layers: Annotated[int, Range(0, 1024)] = 3
    """Layers of the projection head; 0 is none, as with method mae: the features are the representation then."""
    head_hidden_dim: Size | None = None
    """Hidden width of projection head and predictor, of more than one layer (default: 1024 up to 64 px, 4096 above)."""
    parts: tuple[Literal["projection", "features", "quarters"], ...] = ("projection",)
    """What a representation consists of: the projection alone is the paper's; the pooled features before the head, and the
    last feature map averaged over each quarter of the image, tell a generator more. It does not change the training."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if self.arch != "vit" and (given := [n for n in ("width", "depth", "heads", "patch_size") if getattr(self, n)]):
            raise UserError(f"{flag_of(given[0])} shapes --arch vit only; leave it out with {self.arch}.")
        try:
            if not isinstance(json.loads(self.arch_kwargs), dict):
                raise ValueError
        except ValueError:
            raise UserError(
                f"--arch-kwargs {self.arch_kwargs} is no JSON object; write e.g. '{{\"depth\": 6}}'."
            ) from None
        if self.arch == "vit" and self.arch_kwargs != "{}":
            raise UserError(
                "--arch-kwargs is for other architectures than vit; shape that with --width, --depth and so on."
            )
        if not self.head_layers and (self.head_hidden_dim or self.representation_dim != type(self).representation_dim):
            flag = "--head-hidden-dim" if self.head_hidden_dim else "--representation-dim"
            raise UserError(
                f"{flag} shapes the projection head, and there is none; --width is the representation's size."
            )

    def config(self) -> dict[str, Any]:
        """Arguments of `SSLEncoder`, with defaults filled in.

        Raises:
            UserError: patches or heads do not divide what they must.
        """
        small, size = self.image_size <= SMALL, self.image_size
        common = {
            "image_size": size,
            "head_layers": self.head_layers,
            "head_hidden_dim": self.head_hidden_dim or (1024 if small else 4096),
            "head_dim": self.representation_dim,
            "parts": list(self.parts),
        }
        if self.arch != "vit":
            import timm

            published = timm.get_pretrained_cfg(self.arch, allow_unregistered=True)
            fixed = {"img_size": size} if published is not None and published.fixed_input_size else {}
            kwargs = fixed | json.loads(self.arch_kwargs)
            return {"arch": self.arch, "arch_kwargs": kwargs, "pool": "timm", **common}
        width = self.width or (192 if small else 384)
        patch = self.patch_size or _patch_of(size, max(1, size // 8) if small else 16)
        heads = self.heads or max(1, width // 32)
        if size % patch:
            raise UserError(f"patches of {patch} px do not divide {size} px; give another --patch-size.")
        if width % heads:
            raise UserError(f"{heads} heads do not divide the width {width}; give another --heads.")
        kwargs = {
            "img_size": size,
            "patch_size": patch,
            "embed_dim": width,
            "depth": self.depth or (9 if small else 12),
            "num_heads": heads,
        }
        return {"arch": "vit_small_patch16_224", "arch_kwargs": kwargs, "pool": "token", **common}


def _patch_of(size: int, wanted: int) -> int:
    """The side of patches that divide an image and come nearest to what is wanted.

    Raises:
        UserError: the nearest are less than half or more than twice as large.
    """
    if size % wanted == 0:
        return wanted
    fitting = [side for side in range(-(-wanted // 2), 2 * wanted + 1) if size % side == 0]
    if not fitting:
        raise UserError(f"no patches of about {wanted} px divide {size} px; give another --image-size or --patch-size.")
    return min(fitting, key=lambda side: max(side / wanted, wanted / side))
