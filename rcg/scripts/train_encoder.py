"""`rcg-train-encoder`: train an encoder from scratch on your own images, without labels (MoCo-v3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from rcg.core.errors import UserError
from rcg.core.schema import Positive, PositiveShare, Range, Share, Size
from rcg.encoders.shape import EncoderShape
from rcg.scripts._command import flags, run_command
from rcg.training.config import TrainingConfig


@dataclass
class Config:
    """Train an SSLEncoder."""

    data: str
    """A folder of images, or an embedded set: shapes[:n=2000,size=32,seed=0] or clothing[:split=train,…]. Labels are used for logging only."""
    eval_data: str | None = None
    """Labelled images whose k-NN accuracy is logged (default: a part of --data, when it has labels)."""
    eval_samples: Annotated[int, Range(8, 10**9)] = 2000
    """Images that an evaluation looks at, at most; a quarter of them are classified."""
    source_size: Size | None = None
    """Side in pixels at which images are read and augmented, before they are resized to --image-size (default: that)."""
    temperature: Positive = 0.2
    """Of the contrastive loss."""
    momentum: Share = 0.99
    """Of the momentum encoder at the start; it rises to 1 in half a cosine."""
    freeze_patches: bool = True
    """Keep a ViT's random patch projection untrained; does not apply to CNNs."""
    min_crop_scale: PositiveShare | None = None
    """Least share of the area in a random crop (default: 0.2 up to 64 px, the paper's 0.08 from 128 px)."""
    shape: EncoderShape = field(default_factory=EncoderShape)
    """Sizes of the encoder."""
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
        if min(self.training.batch_size, self.training.micro_batch_size or 2) < 2:
            raise UserError("contrastive training needs at least 2 images in a pass; raise --(micro-)batch-size.")


def run(config: Config) -> None:
    """Build encoder and data, and train."""
    import torch

    from rcg.data.images import ImageDataset
    from rcg.data.sources import open_source
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.encoders.train import MoCoStage
    from rcg.training.loop import train

    torch.manual_seed(config.training.seed)
    encoder = SSLEncoder(**config.shape.config())
    side = config.source_size or config.shape.image_size
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
        predictor_hidden_dim=encoder.config.head_hidden_dim,
        temperature=config.temperature,
        momentum=config.momentum,
        freeze_patches=config.freeze_patches,
        min_crop_scale=config.min_crop_scale,
        source_size=side,
    )
    train(stage, config.training, extra_config=flags(config, without=("training",)))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rcg-train-encoder`."""
    description = "Train an encoder from scratch on your own images with MoCo-v3."
    run_command("rcg-train-encoder", Config, run, description, argv)


if __name__ == "__main__":
    main()
