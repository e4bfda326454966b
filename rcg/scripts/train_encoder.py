"""`rcg-train-encoder`: train an encoder from scratch on your own images, without labels (MoCo-v3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import tyro

from rcg.core.errors import UserError
from rcg.core.schema import Depth, Positive, PositiveShare, Range, Share, Size
from rcg.scripts._command import run_command
from rcg.training.config import TrainingConfig

SMALL = 64  # up to this many pixels the small ViT is the default


@dataclass
class Config:
    """Train an SSLEncoder."""

    data: str
    """A folder of images, or the embedded set: shapes[:n=2000,size=32,seed=0]. Labels are used for logging only."""
    image_size: Size = 32
    """Side in pixels at which the encoder works."""
    eval_data: str | None = None
    """Labelled images whose k-NN accuracy is logged (default: a part of --data, when it has labels)."""
    eval_samples: Annotated[int, Range(8, 10**9)] = 2000
    """Images that an evaluation looks at, at most; a quarter of them are classified."""
    arch: str = "vit"
    """`vit`, shaped by the flags below, or the timm name of any ViT or CNN."""
    arch_kwargs: str = "{}"
    """Overrides for another timm architecture as JSON, such as '{"channels": [32, 64, 128, 256]}' for a ResNet."""
    source_size: Size | None = None
    """Side in pixels at which images are read and augmented, before they are resized to --image-size (default: that)."""
    width: Size | None = None
    """Width of the vit (default: 192 up to 64 px, 384 above)."""
    depth: Depth | None = None
    """Blocks of the vit (default: 9 up to 64 px, 12 above)."""
    heads: Depth | None = None
    """Attention heads of the vit (default: width / 32, as in MoCo-v3's ViT-S)."""
    patch_size: Size | None = None
    """Side of the vit's patches in pixels (default: an eighth of the image up to 64 px, 16 above)."""
    representation_dim: Size = 256
    """Width of the representation."""
    head_layers: Depth = 3
    """Layers of the projection head."""
    head_hidden_dim: Size | None = None
    """Hidden width of projection head and predictor (default: 1024 up to 64 px, 4096 above)."""
    temperature: Positive = 0.2
    """Of the contrastive loss."""
    momentum: Share = 0.99
    """Of the momentum encoder at the start; it rises to 1 in half a cosine."""
    freeze_patches: bool = True
    """Keep a ViT's random patch projection untrained; does not apply to CNNs."""
    min_crop_scale: PositiveShare | None = None
    """Least share of the area in a random crop (default: 0.2 up to 64 px, the paper's 0.08 from 128 px)."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            out=tyro.MISSING,
            epochs=200,
            batch_size=512,
            base_lr=3e-4,
            lr_schedule="cosine",
            warmup=0.1,
            weight_decay=0.1,
            beta2=0.999,
        )
    )
    """The training loop. Only images of one forward pass are each other's negatives: keep --micro-batch-size large."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if self.arch != "vit" and (given := [n for n in ("width", "depth", "heads", "patch_size") if getattr(self, n)]):
            raise UserError(f"--{given[0].replace('_', '-')} shapes --arch vit only; leave it out with {self.arch}.")
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
        if min(self.training.batch_size, self.training.micro_batch_size or 2) < 2:
            raise UserError("contrastive training needs at least 2 images in a pass; raise --(micro-)batch-size.")

    def encoder_config(self) -> dict[str, Any]:
        """Arguments of `SSLEncoder`, with defaults filled in by image size.

        Raises:
            UserError: patches or heads do not divide what they must.
        """
        small = self.image_size <= SMALL
        head = {
            "head_layers": self.head_layers,
            "head_hidden_dim": self.predictor_hidden_dim,
            "head_dim": self.representation_dim,
        }
        if self.arch != "vit":
            kwargs = json.loads(self.arch_kwargs)
            return {"arch": self.arch, "arch_kwargs": kwargs, "pool": "timm", "image_size": self.image_size, **head}
        width = self.width or (192 if small else 384)
        patch = self.patch_size or (max(1, self.image_size // 8) if small else 16)
        heads = self.heads or max(1, width // 32)
        if self.image_size % patch:
            raise UserError(f"patches of {patch} px do not divide {self.image_size} px; give another --patch-size.")
        if width % heads:
            raise UserError(f"{heads} heads do not divide the width {width}; give another --heads.")
        arch_kwargs = {
            "img_size": self.image_size,
            "patch_size": patch,
            "embed_dim": width,
            "depth": self.depth or (9 if small else 12),
            "num_heads": heads,
        }
        return {
            "arch": "vit_small_patch16_224",
            "arch_kwargs": arch_kwargs,
            "pool": "token",
            "image_size": self.image_size,
            **head,
        }

    @property
    def predictor_hidden_dim(self) -> int:
        """Hidden width of head and predictor."""
        return self.head_hidden_dim or (1024 if self.image_size <= SMALL else 4096)


def run(config: Config) -> None:
    """Build encoder and data, and train."""
    encoder_config = config.encoder_config()

    import timm
    import torch

    from rcg.data.images import ImageDataset
    from rcg.data.sources import open_source
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.encoders.train import MoCoStage
    from rcg.training.loop import train

    torch.manual_seed(config.training.seed)
    published = timm.get_pretrained_cfg(config.arch, allow_unregistered=True)
    if config.arch != "vit" and published is not None and published.fixed_input_size:
        encoder_config["arch_kwargs"] = {"img_size": config.image_size} | encoder_config["arch_kwargs"]
    encoder = SSLEncoder(**encoder_config)
    side = config.source_size or config.image_size
    dataset = ImageDataset(open_source(config.data), side)
    eval_dataset = None
    if config.eval_data is not None:
        eval_dataset = ImageDataset(open_source(config.eval_data), side)
        if not eval_dataset.class_names or eval_dataset.class_names != dataset.class_names:
            raise UserError("--eval-data needs labels of the same classes as --data; sort both into class folders.")
    stage = MoCoStage(
        encoder,
        dataset,
        eval_dataset=eval_dataset,
        eval_samples=config.eval_samples,
        predictor_hidden_dim=config.predictor_hidden_dim,
        temperature=config.temperature,
        momentum=config.momentum,
        freeze_patches=config.freeze_patches,
        min_crop_scale=config.min_crop_scale,
        source_size=side,
    )
    own = {k: v for k, v in asdict(config).items() if k != "training"}
    train(stage, config.training, extra_config=own)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rcg-train-encoder`."""
    description = "Train an encoder from scratch on your own images with MoCo-v3."
    run_command("rcg-train-encoder", Config, run, description, argv)


if __name__ == "__main__":
    main()
