"""The frozen network that turns an image into its representation (RCG, section 3.1).

`SSLEncoder` is any timm ViT or CNN with its preprocessing, an optional projection head (`rcg.encoders.heads`) and the
standardisation that the representation diffusion model expects. Everything travels in `config.json`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.core.component import Settled
from rcg.core.dropout import replace_dropouts
from rcg.core.errors import UserError, first_line
from rcg.core.schema import Range, Size, check_arguments
from rcg.core.state_dicts import load_exactly, read_weights
from rcg.encoders.heads import HeadType, build_head
from rcg.encoders.quick import quick_backbone

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def standardize(vectors: Tensor) -> Tensor:
    """(h − mean(h)) / std(h) over each row's own entries, std unbiased and without an epsilon (RCG, section 3.1).

    Args:
        vectors: float [B, D], D ≥ 2.

    Returns:
        [B, D] of the same dtype; computed in float32 or better.

    Raises:
        UserError: a row is constant or not finite, so that it has no standardised form.
    """
    h = vectors if vectors.dtype == torch.float64 else vectors.float()
    std = h.std(dim=1, keepdim=True)
    usable = std > 1e-6 * h.abs().amax(dim=1, keepdim=True)  # below that a spread is rounding; NaN compares false
    if not bool(usable.all()):
        row = int((~usable).flatten().nonzero()[0])
        fault = "constant" if bool(h[row].isfinite().all()) else "not finite"
        raise UserError(
            f"the representation of image {row} of the batch is {fault} and cannot be standardised; "
            "the encoder's weights are collapsed or unfit for these images, so load or train another encoder."
        )
    return ((h - h.mean(dim=1, keepdim=True)) / std).to(vectors.dtype)


def standardize_parts(parts: Sequence[Tensor]) -> Tensor:
    """Parts [B, D_i] in a row, each standardised on its own (if there are several), then all together; errors as above."""
    return standardize(parts[0] if len(parts) == 1 else torch.cat([standardize(part) for part in parts], dim=1))


def _create_backbone(arch: str, arch_kwargs: dict[str, Any], pretrained: bool = False) -> Any:
    if arch_kwargs.get("in_chans", 3) != 3:
        raise UserError(
            f"arch_kwargs: in_chans is {arch_kwargs['in_chans']}, but images have 3 channels; leave it out."
        )
    for name, value in arch_kwargs.items():
        limit = 1024 if "depth" in name or "heads" in name else 65536
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and not -limit <= number <= limit:
                raise UserError(f"arch_kwargs: {name} is out of range; timm's models take numbers up to {limit} there.")
    try:
        return timm.create_model(arch, pretrained=pretrained, num_classes=0, **arch_kwargs)
    except (
        RuntimeError, TypeError, AssertionError, ValueError, OSError, ArithmeticError, LookupError, AttributeError
    ) as e:  # fmt: skip
        if not timm.is_model(arch.removeprefix("timm/").partition(".")[0]):
            near = difflib.get_close_matches(arch.partition(".")[0], timm.list_models(), n=3)
            hint = f"near names: {', '.join(near)}" if near else "timm.list_models() names them all"
            raise UserError(f"timm has no architecture {arch!r}; {hint}.") from e
        what = "its pretrained weights cannot be had" if pretrained else f"with {arch_kwargs} it cannot be built"
        raise UserError(f"timm's {arch!r}: {what} ({first_line(e)}).") from e


Part = Literal["projection", "features", "quarters"]
"""What a representation can consist of, see `SSLEncoder`."""


class SSLEncoder(Settled, ModelMixin, ConfigMixin):
    """Images in [0, 1] → representations.

    Normalise → resize → timm backbone → pooling → projection head (BatchNorm in eval mode) → standardise. A new
    encoder is in eval mode, like one from `from_pretrained`.

    The paper's representation is the projection alone. A richer one, which tells an image generator more and asks more of
    an RDM, is several parts in a row, each standardised on its own: the `projection`, the pooled `features` before the
    head, and the `quarters`, the last feature map averaged over each quarter of the image (upper left and right, lower
    left and right). Parts can be chosen for a trained encoder: `SSLEncoder.from_pretrained(folder, parts=[…])`.

    Args:
        arch: a timm model name.
        arch_kwargs: overrides for `timm.create_model`, such as img_size, patch_size, embed_dim, depth, num_heads.
        image_size: side in pixels to which images are resized.
        mean, std: per-channel statistics of images in [0, 1].
        interpolation: how images are resized. The paper: bicubic, after normalisation.
        antialias: low-pass before shrinking. The paper: no.
        pool: "token" is the class token after the final norm, "avg" the mean over patches or positions, "timm" whatever
            the architecture itself does before its classifier.
        head_layers: layers of the projection head; 0 is no head.
        head_hidden_dim, head_dim: hidden and output width of the head.
        standardize: standardise each representation over its own entries.
        head_type: whose projection head it is: "mocov3", "dino" (iBOT's too), "stablerep", "synclr" or "linear".
        parts: what a representation consists of, in this order.

    Raises:
        UserError: the architecture, its overrides or their combination cannot be used.
    """

    backbone: Any  # timm's models have no common type
    head: nn.Sequential | None

    @register_to_config
    def __init__(
        self,
        arch: str = "vit_base_patch16_224",
        arch_kwargs: dict[str, Any] | None = None,
        image_size: Size = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
        antialias: bool = False,
        pool: Literal["token", "avg", "timm"] = "token",
        head_layers: Annotated[int, Range(0, 1024)] = 0,
        head_hidden_dim: Size = 4096,
        head_dim: Size = 256,
        standardize: bool = True,
        head_type: HeadType = "mocov3",
        parts: Sequence[Part] = ("projection",),
    ) -> None:
        super().__init__()
        check_arguments(self)
        if not parts or len(set(parts)) < len(parts):
            raise UserError(f"parts are {list(parts)}, but a representation needs at least one, each once.")
        if len(mean) != 3 or len(std) != 3 or not all(s > 0 for s in std):
            raise UserError("mean and std need three numbers each, one a colour channel, and every std above 0.")
        self.backbone = _create_backbone(arch, dict(arch_kwargs or {}))
        replace_dropouts(self.backbone)
        self._check_backbone(arch, image_size, pool)
        self.head = build_head(head_type, self.feature_dim, head_hidden_dim, head_dim, head_layers)
        self.eval()

    def _check_backbone(self, arch: str, image_size: int, pool: str) -> None:
        fixed = not getattr(self.backbone, "dynamic_img_size", False)
        built_for = getattr(getattr(self.backbone, "patch_embed", None), "img_size", None)
        if fixed and built_for and tuple(built_for) != (image_size,) * 2:
            sides = " × ".join(map(str, dict.fromkeys(built_for)))
            raise UserError(
                f"{arch} is built for {sides} px but image_size is {image_size}; "
                f"set arch_kwargs to {{'img_size': {image_size}}}."
            )
        prefix = getattr(self.backbone, "num_prefix_tokens", 0)  # they may be registers alone
        if pool == "token" and (not prefix or getattr(self.backbone, "cls_token", True) is None):
            raise UserError(f"{arch} has no class token; choose pool='avg' or pool='timm'.")

    @property
    def feature_dim(self) -> int:
        """Width of the pooled features before the head."""
        width = self.backbone.num_features
        if self.config.pool == "timm":
            width = getattr(self.backbone, "head_hidden_size", None) or width
        return int(width)

    @property
    def projection_dim(self) -> int:
        """Entries of one projection: the head's output width, or the features' where there is no head."""
        return int(self.config.head_dim) if self.head is not None else self.feature_dim

    @property
    def part_sizes(self) -> list[int]:
        """Entries of each part of a representation."""
        sizes = {
            "projection": self.projection_dim,
            "features": self.feature_dim,
            "quarters": 4 * int(self.backbone.num_features),
        }
        return [sizes[part] for part in self.config.parts]

    @property
    def representation_dim(self) -> int:
        """Entries of one representation, all its parts together."""
        return sum(self.part_sizes)

    def preprocess(self, images: Tensor, side: int | None = None) -> Tensor:
        """Normalise, then resize (in that order, as the reference does).

        Args:
            images: float [B, 3, H, W] in [0, 1], any H and W.
            side: what to resize to; None: image_size.

        Returns:
            [B, 3, side, side] in the model's dtype; the arithmetic is at least float32.

        Raises:
            UserError: integer images, or not [B, 3, H, W].
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"images must be [batch, 3, height, width], but their shape is {list(images.shape)}.")
        if not images.is_floating_point():
            raise UserError(f"images must be floats in [0, 1], but they are {images.dtype}; divide 8-bit ones by 255.")
        x = images if images.dtype == torch.float64 else images.float()
        mean, std = torch.tensor([self.config.mean, self.config.std], dtype=x.dtype).to(x.device, non_blocking=True)
        x = (x - mean[:, None, None]) / std[:, None, None]
        size = (side or self.config.image_size,) * 2
        if x.shape[2:] != size:
            mode, antialias = self.config.interpolation, self.config.antialias
            x = F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=antialias)
        return x.to(self.dtype)

    def features(self, images: Tensor) -> Tensor:
        """Pooled backbone features before the head, [B, feature_dim]: what k-NN and linear probes are given."""
        return self.pooled(self._backbone_features(images))

    def _backbone_features(self, images: Tensor) -> Tensor:
        """The backbone's last tokens or feature map, in timm's own layout."""
        x = self.preprocess(images)
        with quick_backbone(x):
            found: Tensor = self.backbone.forward_features(x)
        return found

    def pooled(self, x: Tensor) -> Tensor:
        """Features [B, feature_dim] of the backbone's last tokens or feature map."""
        if self.config.pool == "timm":
            return self.backbone.forward_head(x, pre_logits=True)
        if self.config.pool == "token":
            return x[:, 0]
        if x.ndim == 4:
            axes = (1, 2) if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC" else (2, 3)
            return x.mean(dim=axes)
        return x[:, getattr(self.backbone, "num_prefix_tokens", 0) :].mean(dim=1)

    def _quarters(self, x: Tensor) -> Tensor:
        """Averages over the quarters of the last feature map, [B, 4 · C]."""
        if x.ndim == 3:
            x = x[:, getattr(self.backbone, "num_prefix_tokens", 0) :].transpose(1, 2)
            if (side := math.isqrt(x.shape[2])) ** 2 != x.shape[2]:
                raise UserError(
                    f"the {x.shape[2]} tokens of {self.config.arch} are no square; leave out part 'quarters'."
                )
            x = x.unflatten(2, (side, side))
        elif getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            x = x.permute(0, 3, 1, 2)
        return F.adaptive_avg_pool2d(x, 2).flatten(2).transpose(1, 2).flatten(1)

    def project(self, features: Tensor) -> Tensor:
        """The head's output before standardisation, [B, projection_dim]; the features themselves without a head."""
        return features if self.head is None else self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        """Representations of images.

        Args:
            images: float [B, 3, H, W] in [0, 1].

        Returns:
            [B, representation_dim]; with `standardize`, each row has mean 0 and unbiased standard deviation 1.

        Raises:
            UserError: unusable images, or a constant representation.
        """
        x = self._backbone_features(images)
        features = self.pooled(x) if {"projection", "features"} & set(self.config.parts) else x
        makers = {
            "projection": lambda: self.project(features),
            "features": lambda: features,
            "quarters": lambda: self._quarters(x),
        }
        parts = [makers[part]() for part in self.config.parts]
        return standardize_parts(parts) if self.config.standardize else torch.cat(parts, dim=1)

    def feature_maps(self, images: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        """Intermediate activations, differentiable in the images: the parts of a perceptual distance.

        Args:
            images: float [B, 3, H, W] in [0, 1].
            indices: which blocks or levels, in timm's numbering (negative counts from the end); None is all.

        Returns:
            one [B, C, h, w] for each, shallow to deep (class tokens left out).

        Raises:
            UserError: timm offers no intermediate activations for this architecture.
        """
        if not hasattr(self.backbone, "forward_intermediates"):
            raise UserError(f"timm gives no feature maps for {self.config.arch}; choose an architecture that has them.")
        chosen = None if indices is None else list(indices)
        maps = self.backbone.forward_intermediates(
            self.preprocess(images), indices=chosen, output_fmt="NCHW", intermediates_only=True
        )
        return list(maps)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> SSLEncoder:
        """Load a saved encoder; arguments as in diffusers.

        The weights are loaded into a normally built model: diffusers' default, to build it empty, would leave those
        buffers of timm that are computed and not saved (Swin's masks, rotary tables) without values.
        """
        if kwargs.get("device_map") is None:
            kwargs["low_cpu_mem_usage"] = False
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_timm(
        cls,
        name: str,
        *,
        pretrained: bool = False,
        checkpoint: str | Path | None = None,
        arch_kwargs: dict[str, Any] | None = None,
        pool: Literal["token", "avg", "timm"] = "timm",
        antialias: bool = True,
        standardize: bool = True,
    ) -> SSLEncoder:
        """Wrap a timm model; size, mean, std and interpolation come from timm's `pretrained_cfg`.

        timm's own evaluation shrinks with a low-pass filter, hence `antialias`; its centre crop is left out, because
        the whole image is to be represented.

        Args:
            name: a timm name, with or without a weights tag (`vit_small_patch14_dinov2.lvd142m`).
            pretrained: let timm fetch the published weights.
            checkpoint: instead, read weights under timm's names from this file (torch or safetensors).
            arch_kwargs, pool, antialias, standardize: as in the class.

        Raises:
            UserError: unknown name, weights that cannot be had, or a file whose keys do not fit.
        """
        if pretrained and checkpoint is not None:
            raise UserError("pretrained weights and a checkpoint file exclude each other; give one of them.")
        kwargs = dict(arch_kwargs or {})
        source = _create_backbone(name, kwargs, pretrained)
        cfg = source.pretrained_cfg
        built_for = getattr(getattr(source, "patch_embed", None), "img_size", None)
        encoder = cls(
            arch=name,
            arch_kwargs=kwargs,
            image_size=int((built_for or cfg["input_size"][1:])[0]),
            mean=list(cfg.get("mean", IMAGENET_MEAN)),
            std=list(cfg.get("std", IMAGENET_STD)),
            interpolation=cfg.get("interpolation", "bicubic"),
            antialias=antialias,
            pool=pool,
            standardize=standardize,
        )
        if checkpoint is None:
            encoder.backbone.load_state_dict(source.state_dict())
            return encoder
        classifier = cfg.get("classifier") or ()
        names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        state = read_weights(Path(checkpoint))
        kept = {k: v for k, v in state.items() if k.rpartition(".")[0] not in names}  # the classifier is not wanted
        load_exactly(encoder.backbone, kept, str(checkpoint))
        return encoder
