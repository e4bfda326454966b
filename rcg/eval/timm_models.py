"""timm's models as feature extractors: any of them by name, DINOv2 for FDD, and CLIP for CMMD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg.core.errors import UserError, first_line
from rcg.eval.features import AT_HAND, load_exactly, read_weights

DINOV2 = "vit_large_patch14_dinov2.lvd142m"
DINOV2_SIZE = 224
CLIP = "vit_large_patch14_clip_quickgelu_336.openai"


class TimmFeatures(nn.Module):
    """A timm model behind its own normalisation and a bicubic resize to its own size.

    Args:
        model: gives features [B, D].
        antialias: of the resize.
        unit: scale features to length 1.
    """

    def __init__(self, model: nn.Module, antialias: bool = True, unit: bool = False) -> None:
        super().__init__()
        import timm

        config = timm.data.resolve_model_data_config(model)
        self.model, self.antialias, self.unit = model, antialias, unit
        grid = getattr(getattr(model, "patch_embed", None), "img_size", None)
        self.size = tuple(grid or config["input_size"][1:])
        self.resize = f"to {self.size[0]} px, bicubic {'with' if antialias else 'without'} antialias"
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] → [B, D]."""
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=self.antialias)
            images = images.clamp(0, 1) if self.antialias else images  # as 8-bit pictures, or as CMMD's program
        features: Tensor = self.model((images - self.mean) / self.std)
        return F.normalize(features.float(), dim=1) if self.unit else features


def _create(name: str, weights: Path | None, what: str, head: bool = False) -> Any:
    """timm's model `name` with its published weights or those of a file, with or without its last layer.

    Raises:
        UserError: timm has no such model or weights, they cannot be downloaded, or the file does not fit the model.
    """
    import timm

    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]
        hint = f"such as {', '.join(close)}" if close else "see timm.list_models()"
        raise UserError(f"timm has no model {name!r}; choose one it has, {hint}.")
    options: dict[str, Any] = {} if head else {"num_classes": 0}
    state = None if weights is None else read_weights(weights, what)
    try:
        model: Any = timm.create_model(name, pretrained=state is None, **options)
    except (OSError, RuntimeError, ValueError) as e:
        reason = first_line(e)
        if state is not None:
            raise UserError(f"timm cannot make {name!r} ({reason}); choose another model.") from None
        way = f"give a file as {what}:FILE" if what.startswith("timm:") else "give a file with --extractor-weights"
        raise UserError(
            f"The published weights of {what} cannot be had ({reason}); {way}, or use another extractor. {AT_HAND}"
        ) from None
    if state is None:
        return model
    if not head:
        heads = model.pretrained_cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        state = {k: v for k, v in state.items() if not k.startswith(tuple(f"{h}." for h in heads))}
    load_exactly(model, state, what)
    return model


def timm_features(name: str, weights: Path | None = None) -> TimmFeatures:
    """The pooled features of timm's model `name`, behind its own resize (antialiased) and normalisation.

    Raises:
        UserError: timm has no such model, the weights cannot be downloaded, or the file does not fit the model.
    """
    return TimmFeatures(_create(name, weights, f"timm:{name}"))


def dinov2_features(weights: Path | None = None, name: str = DINOV2, size: int = DINOV2_SIZE) -> TimmFeatures:
    """DINOv2 ViT-L/14 at 224 px as FDD takes it (Stein et al., arXiv 2306.04675): the final class token, 1024 numbers.

    Positions are brought to 224 px as DINOv2's own program does, whose numbers the published FDDs rest on.

    Args:
        weights: a file under timm's names instead of the download.
        name, size: another of timm's DINOv2 models, and the size of its images.

    Raises:
        UserError: weights that cannot be had or do not fit.
    """
    model = _create(name, weights, "dinov2")
    patch = model.patch_embed.patch_size[0]
    positions = resize_positions(model.pos_embed.detach(), size // patch)
    model.pos_embed = nn.Parameter(positions, requires_grad=False)
    model.patch_embed.img_size = (size, size)
    model.patch_embed.grid_size = (size // patch,) * 2
    return TimmFeatures(model)


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """DINOv2's positions [1, 1 + n², D] for another grid: bicubic, scaled by (grid + 0.1)/n, without antialias."""
    token, places = positions[:, :1], positions[:, 1:]
    n = round(places.shape[1] ** 0.5)
    square = places.reshape(1, n, n, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, scale_factor=(grid + 0.1) / n, mode="bicubic")
    return torch.cat([token, square.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def clip_features(weights: Path | None = None, name: str = CLIP) -> TimmFeatures:
    """CLIP ViT-L/14 at 336 px as CMMD takes it (arXiv 2401.09603): projected image embeddings of length 1, 768 numbers.

    Images are resized without antialias, as the paper's program does.

    Args:
        weights: a file under timm's names instead of the download.
        name: another of timm's CLIP models.

    Raises:
        UserError: weights that cannot be had or do not fit.
    """
    return TimmFeatures(_create(name, weights, "clip", head=True), antialias=False, unit=True)
