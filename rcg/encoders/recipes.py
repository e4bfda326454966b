"""Each method's own flags of `rcg-train-encoder`, by `--method`. Imports no torch, so that `--help` stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from rcg.core.errors import UserError
from rcg.core.schema import Depth, NonNegative, Positive, PositiveShare, Range, Share, ShareBelowOne, Size, flag_of
from rcg.encoders.protocol import Samples

if TYPE_CHECKING:
    from rcg.encoders.byol import BYOL
    from rcg.encoders.dino import DINO
    from rcg.encoders.language import CLIP, LanguageTower
    from rcg.encoders.mae import MAE
    from rcg.encoders.moco import MoCoV3
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.encoders.stablerep import MultiPositive
    from rcg.encoders.synclr import SynCLR

MOCO_V3: dict[str, Any] = {
    "out": tyro.MISSING,
    "epochs": 200,
    "batch_size": 512,
    "base_lr": 3e-4,
    "lr_schedule": "cosine",
    "warmup": 0.1,
    "weight_decay": 0.1,
    "beta2": 0.999,
}
"""The training loop's defaults; a recipe's TRAINING says what its method wants otherwise, SHAPE the same of the encoder."""
Views = Annotated[int, Range(2, 64)]
"""Images of one caption in a step."""


def _refuse_idle(recipe: Any, why: str, *names: str) -> None:
    """Raise `UserError` for the first of these fields that is not at its default: what was asked for would play no part."""
    for name in names:
        if getattr(recipe, name) != getattr(type(recipe), name):
            raise UserError(f"{flag_of(name)} has no effect {why}; leave it out.")


@dataclass
class MoCoV3Recipe:
    """MoCo-v3 (arXiv 2104.02057): two views of one image; a momentum encoder makes the targets."""

    temperature: Positive = 0.2
    """Of the contrastive loss."""
    momentum: Share = 0.99
    """Of the momentum encoder at the start; it rises to 1 in half a cosine."""
    freeze_patches: bool = True
    """Keep a ViT's random patch projection untrained; does not apply to CNNs."""
    min_crop_scale: PositiveShare | None = None
    """Least share of the area in a random crop (default: 0.2 up to 64 px, the paper's 0.08 from 128 px)."""

    predictor_layers: ClassVar[int] = 2
    head: ClassVar[str] = "mocov3"
    samples: ClassVar[Samples] = Samples()
    TRAINING: ClassVar[dict[str, Any]] = {}
    SHAPE: ClassVar[dict[str, Any]] = {}

    def objective(self, encoder: SSLEncoder, size: int) -> MoCoV3:
        """See `rcg.encoders.protocol.Recipe`."""
        from rcg.encoders.augment import moco_v3_recipes
        from rcg.encoders.moco import MoCoV3

        if not hasattr(encoder.backbone, "patch_embed"):
            _refuse_idle(self, f"on {encoder.config.arch}, which has no patches", "freeze_patches")
        return MoCoV3(
            encoder,
            predictor_hidden_dim=int(encoder.config.head_hidden_dim),
            temperature=self.temperature,
            momentum=self.momentum,
            freeze_patches=self.freeze_patches,
            recipes=moco_v3_recipes(size, self.min_crop_scale),
        )


@dataclass
class SimCLRRecipe:
    """SimCLR (arXiv 2002.05709) with StableRep's augmentation: two views of one image, whatever its caption."""

    temperature: Positive = 0.1
    """Of the contrastive loss."""
    batch_norm: Literal["view", "all"] = "view"
    """BatchNorm of the head counts each view of the batch by itself, or all views together."""
    downsample: Share = 0.05
    """Share of images that are seen at a quarter or half of their resolution."""
    min_crop_scale: PositiveShare | None = None
    """Least share of the area in a random crop (default: 0.2 up to 64 px, the paper's 0.08 from 128 px)."""

    head: ClassVar[str] = "stablerep"
    samples: ClassVar[Samples] = Samples()
    TRAINING: ClassVar[dict[str, Any]] = {"base_lr": 2e-4, "beta2": 0.98}
    SHAPE: ClassVar[dict[str, Any]] = {}

    def objective(self, encoder: SSLEncoder, size: int) -> MultiPositive:
        """See `rcg.encoders.protocol.Recipe`."""
        from rcg.encoders.augment import stablerep_view
        from rcg.encoders.stablerep import MultiPositive

        view = stablerep_view(size, self.min_crop_scale, self.downsample)
        return MultiPositive(encoder, view, temperature=self.temperature, crops=2, batch_norm=self.batch_norm)


@dataclass
class StableRepRecipe:
    """StableRep (arXiv 2306.00984): images of one caption are positives of each other. --batch-size counts captions."""

    images_per_caption: Views = 6
    """Images of each caption in a step, drawn anew each time; a caption with fewer gives some of them again."""
    temperature: Positive = 0.1
    """Of the contrastive loss."""
    batch_norm: Literal["view", "all"] = "view"
    """BatchNorm of the head counts the i-th images of all captions by themselves, as published, or all together."""
    downsample: Share = 0.05
    """Share of images that are seen at a quarter or half of their resolution."""
    min_crop_scale: PositiveShare | None = None
    """Least share of the area in a random crop (default: 0.2 up to 64 px, the paper's 0.08 from 128 px)."""

    head: ClassVar[str] = "stablerep"
    TRAINING: ClassVar[dict[str, Any]] = {"batch_size": 128, "base_lr": 6e-4, "beta2": 0.98}
    """The paper's 1e-4 per 256 images, with six images to a caption."""
    SHAPE: ClassVar[dict[str, Any]] = {}

    @property
    def samples(self) -> Samples:
        """So many images of each caption."""
        return Samples(self.images_per_caption)

    def _language(self, encoder: SSLEncoder) -> LanguageTower | None:
        return None

    def objective(self, encoder: SSLEncoder, size: int) -> MultiPositive:
        """See `rcg.encoders.protocol.Recipe`."""
        from rcg.encoders.augment import stablerep_view
        from rcg.encoders.stablerep import MultiPositive

        return MultiPositive(
            encoder,
            stablerep_view(size, self.min_crop_scale, self.downsample),
            temperature=self.temperature,
            batch_norm=self.batch_norm,
            language=self._language(encoder),
        )


@dataclass
class CaptionShape:
    """Sizes of a caption encoder."""

    text_width: Size = 512
    """Width of the caption encoder."""
    text_depth: Depth = 12
    """Its blocks."""
    text_heads: Depth = 8
    """Its attention heads."""
    caption_bytes: Size = 192
    """Longest caption, in bytes of UTF-8; longer ones are cut off."""

    def tower(self, dim: int, image_dim: int = 0) -> LanguageTower:
        """A new caption encoder, see `LanguageTower`."""
        from rcg.encoders.language import LanguageTower

        return LanguageTower(dim, self.text_width, self.text_depth, self.text_heads, self.caption_bytes, image_dim)


@dataclass
class StableRepPlusRecipe(StableRepRecipe, CaptionShape):
    """StableRep+: beside its loss, half of CLIP's two between images and captions."""

    text_dim: Size = 512
    """Where images and captions meet."""

    @property
    def samples(self) -> Samples:
        """So many images of each caption, and the caption."""
        return Samples(self.images_per_caption, self.caption_bytes)

    def _language(self, encoder: SSLEncoder) -> LanguageTower:
        return self.tower(self.text_dim, encoder.feature_dim)


@dataclass
class CLIPRecipe(CaptionShape):
    """CLIP (arXiv 2103.00020): an image and its caption. The encoder's head is one matrix."""

    min_crop_scale: PositiveShare = 0.5
    """Least share of the area in a random crop."""

    head: ClassVar[str] = "linear"
    TRAINING: ClassVar[dict[str, Any]] = {"base_lr": 2e-4, "beta2": 0.98}
    SHAPE: ClassVar[dict[str, Any]] = {"head_layers": 1}

    @property
    def samples(self) -> Samples:
        """One image of each caption, and the caption."""
        return Samples(1, self.caption_bytes)

    def objective(self, encoder: SSLEncoder, size: int) -> CLIP:
        """See `rcg.encoders.protocol.Recipe`."""
        from rcg.encoders.augment import clip_view
        from rcg.encoders.language import CLIP

        if encoder.head is None:
            raise UserError("CLIP trains an encoder with a linear head; set --head-layers 1.")
        return CLIP(encoder, self.tower(encoder.projection_dim), clip_view(size, self.min_crop_scale))


@dataclass
class BYOLRecipe:
    """BYOL (arXiv 2006.07733): two views of one image; each predicts what a slowly following copy makes of the other."""

    momentum: Share = 0.996
    """Of the target network at the start; it rises to 1 in half a cosine."""
    min_crop_scale: PositiveShare | None = None
    """Least share of the area in a random crop (default: 0.2 up to 64 px, the paper's 0.08 from 128 px)."""

    predictor_layers: ClassVar[int] = 2
    head: ClassVar[str] = "stablerep"
    samples: ClassVar[Samples] = Samples()
    TRAINING: ClassVar[dict[str, Any]] = {}
    SHAPE: ClassVar[dict[str, Any]] = {"head_layers": 2}

    def objective(self, encoder: SSLEncoder, size: int) -> BYOL:
        """See `rcg.encoders.protocol.Recipe`."""
        from rcg.encoders.augment import moco_v3_recipes
        from rcg.encoders.byol import BYOL

        return BYOL(
            encoder,
            predictor_hidden_dim=int(encoder.config.head_hidden_dim),
            momentum=self.momentum,
            recipes=moco_v3_recipes(size, self.min_crop_scale),
        )


@dataclass
class DINORecipe:
    """DINO (arXiv 2104.14294): prototypes that a slowly following teacher sees in two large parts of an image are to be seen
    in its other parts. The teacher is kept; its head's bottleneck is the representation."""

    prototypes: Annotated[int, Range(2, 2**20)] | None = None
    """How many (default: 4096 up to 64 px, the paper's 65536 above)."""
    momentum: Share = 0.996
    """Of the teacher at the start; it rises to 1 in half a cosine."""
    teacher_temperature: Positive = 0.04
    """Of the teacher's choice after its warm-up; up to 0.07 where training stays stable."""
    warmup_temperature: Positive = 0.04
    """At the start."""
    temperature_warmup: Share = 0.3
    """Share of the training that this warm-up takes."""
    local_crops: Annotated[int, Range(0, 64)] = 4
    """Views of small parts, for the student. They cost as much as large ones, since an encoder works at one size."""
    global_crop_scale: PositiveShare = 0.4
    """Least share of the area of a large part, and the largest of a small one."""

    head: ClassVar[str] = "dino"
    samples: ClassVar[Samples] = Samples()
    TRAINING: ClassVar[dict[str, Any]] = {"base_lr": 5e-4, "weight_decay": 0.04, "clip_grad": 3.0}
    SHAPE: ClassVar[dict[str, Any]] = {}

    def validate(self) -> None:
        """Raise `UserError` for what would have no effect."""
        if not self.temperature_warmup:
            _refuse_idle(self, "with --temperature-warmup 0", "warmup_temperature")

    def objective(self, encoder: SSLEncoder, size: int) -> DINO:
        """See `rcg.encoders.protocol.Recipe`."""
        from rcg.encoders.dino import DINO, dino_recipes
        from rcg.encoders.shape import SMALL

        return DINO(
            encoder,
            prototypes=self.prototypes or (4096 if encoder.config.image_size <= SMALL else 65536),
            momentum=self.momentum,
            teacher_temperature=self.teacher_temperature,
            warmup_temperature=self.warmup_temperature,
            warmup=self.temperature_warmup,
            recipes=dino_recipes(size, self.global_crop_scale, self.local_crops),
        )


@dataclass
class MAERecipe:
    """MAE (arXiv 2111.06377): the pixels of hidden patches, from the others. There is no head: the ViT's features are the
    representation."""

    mask_ratio: ShareBelowOne = 0.75
    """Share of the patches that are hidden."""
    decoder_width: Size | None = None
    """Width of the decoder, which is thrown away (default: 128 up to 64 px, the paper's 512 above)."""
    decoder_depth: Depth = 8
    """Its blocks."""
    normalize_pixels: bool = True
    """Paint each patch's pixels with mean 0 and deviation 1."""
    min_crop_scale: PositiveShare = 0.2
    """Least share of the area in a random crop; crops and flips are all that changes an image."""

    head: ClassVar[str] = "mocov3"
    samples: ClassVar[Samples] = Samples()
    TRAINING: ClassVar[dict[str, Any]] = {"base_lr": 1.5e-4, "weight_decay": 0.05, "beta2": 0.95}
    SHAPE: ClassVar[dict[str, Any]] = {"head_layers": 0}

    def objective(self, encoder: SSLEncoder, size: int) -> MAE:
        """See `rcg.encoders.protocol.Recipe`."""
        from rcg.encoders.augment import clip_view
        from rcg.encoders.mae import MAE
        from rcg.encoders.shape import SMALL

        return MAE(
            encoder,
            clip_view(size, self.min_crop_scale),
            mask_ratio=self.mask_ratio,
            decoder_width=self.decoder_width or (128 if encoder.config.image_size <= SMALL else 512),
            decoder_depth=self.decoder_depth,
            normalize=self.normalize_pixels,
        )


@dataclass
class SynCLRRecipe:
    """SynCLR (arXiv 2312.17742): StableRep's loss against a slowly following teacher, also of small crops, and iBOT's: what that
    teacher sees in hidden patches is to be predicted. For ViTs. The teacher is kept. --batch-size counts captions."""

    images_per_caption: Views = 4
    """Images of each caption in a step, drawn anew each time; a caption with fewer gives some of them again."""
    temperature: Positive = 0.08
    """Of the contrastive loss."""
    momentum: Share = 0.994
    """Of the teacher at the start; it rises to 1 in half a cosine."""
    predictor_layers: Annotated[int, Range(0, 16)] = 2
    """Layers of the student's predictor; 0 is none."""
    drop_path: ShareBelowOne = 0.1
    """Stochastic depth of the student's last block, growing from 0 in the first; 0.4 for a ViT-L."""
    patch_weight: NonNegative = 1.0
    """Weight of the loss on hidden patches; 0 hides none."""
    mask_probability: PositiveShare = 0.5
    """Share of the images some of whose patches are hidden."""
    mask_ratio: ShareBelowOne = 0.5
    """Share of their patches that are."""
    mask_shape: Literal["random", "block"] = "random"
    """Any of the patches, as published, or blocks of them, as iBOT hides them."""
    prototypes: Annotated[int, Range(2, 2**20)] | None = None
    """Among which the teacher chooses for each patch (default: 4096 up to 64 px, the paper's 65536 above)."""
    patch_hidden_dim: Size | None = None
    """Hidden width of the head of patches (default: 512 up to 64 px, 2048 above)."""
    teacher_temperature: Positive = 0.07
    """Of the teacher's choice after its warm-up."""
    warmup_temperature: Positive = 0.04
    """At the start."""
    temperature_warmup: Share = 0.047
    """Share of the training that this warm-up takes: 4000 of 85,000 steps."""
    local_crops: Annotated[int, Range(0, 64)] = 4
    """Small views of each image, 96 px of 224, for the student."""
    global_crop_scale: PositiveShare = 0.32
    """Least share of the area of a large view, and the largest of a small one; 0.14 is published for --local-crops 0."""
    min_crop_scale: PositiveShare | None = None
    """Least share of the area of a small view (default: 0.2 up to 64 px, the published 0.08 from 128 px)."""
    downsample: Share = 0.05
    """Share of views that are seen at a quarter or half of their resolution."""

    head: ClassVar[str] = "synclr"
    TRAINING: ClassVar[dict[str, Any]] = {
        "batch_size": 128,
        "base_lr": 2.5e-4,
        "weight_decay": 0.04,
        "weight_decay_end": 0.2,
    }
    """The paper's (table 12): a rate of 2e-3 for 2048 captions, and a weight decay that grows."""
    SHAPE: ClassVar[dict[str, Any]] = {}

    @property
    def samples(self) -> Samples:
        """So many images of each caption."""
        return Samples(self.images_per_caption)

    def validate(self) -> None:
        """Raise `UserError` for what would have no effect."""
        if not self.patch_weight:
            of_patches = (
                "mask_probability", "mask_ratio", "mask_shape", "prototypes", "patch_hidden_dim", "teacher_temperature",
                "warmup_temperature", "temperature_warmup",
            )  # fmt: skip
            _refuse_idle(self, "with --patch-weight 0", *of_patches)
        if not self.temperature_warmup:
            _refuse_idle(self, "with --temperature-warmup 0", "warmup_temperature")
        if not self.local_crops:
            _refuse_idle(self, "with --local-crops 0", "min_crop_scale")

    def objective(self, encoder: SSLEncoder, size: int) -> SynCLR:
        """See `rcg.encoders.protocol.Recipe`."""
        from rcg.encoders.augment import synclr_views
        from rcg.encoders.shape import SMALL
        from rcg.encoders.synclr import PatchSettings, SynCLR, local_side
        from rcg.encoders.tokens import check_plain_vit

        check_plain_vit(encoder, "SynCLR")
        if "drop_path_rate" in (encoder.config.arch_kwargs or {}):
            raise UserError("drop_path_rate in --arch-kwargs has no effect with SynCLR; give --drop-path instead.")
        small = encoder.config.image_size <= SMALL
        side = local_side(encoder.config.image_size, int(encoder.backbone.patch_embed.patch_size[0]))
        # resized to the encoder's pixels as the images are
        side = max(1, round(side * size / encoder.config.image_size))
        return SynCLR(
            encoder,
            synclr_views(size, side, self.global_crop_scale, self.min_crop_scale, self.downsample),
            temperature=self.temperature,
            momentum=self.momentum,
            local_crops=self.local_crops,
            predictor_hidden_dim=int(encoder.config.head_hidden_dim),
            predictor_layers=self.predictor_layers,
            drop_path=self.drop_path,
            patches=PatchSettings(
                weight=self.patch_weight,
                probability=self.mask_probability,
                ratio=self.mask_ratio,
                shape=self.mask_shape,
                prototypes=self.prototypes or (4096 if small else 65536),
                hidden_dim=self.patch_hidden_dim or (512 if small else 2048),
                temperature=self.teacher_temperature,
                warmup_temperature=self.warmup_temperature,
                warmup=self.temperature_warmup,
            ),
        )


MethodName = Literal["moco-v3", "simclr", "stablerep", "stablerep+", "synclr", "clip", "byol", "dino", "mae"]
RECIPES: dict[MethodName, type[Any]] = {
    "moco-v3": MoCoV3Recipe,
    "simclr": SimCLRRecipe,
    "stablerep": StableRepRecipe,
    "stablerep+": StableRepPlusRecipe,
    "synclr": SynCLRRecipe,
    "clip": CLIPRecipe,
    "byol": BYOLRecipe,
    "dino": DINORecipe,
    "mae": MAERecipe,
}
"""See `Recipe` in `rcg.encoders.protocol`."""
