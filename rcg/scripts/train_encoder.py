"""`rcg-train-encoder`: train an encoder from scratch, on images alone or on several images of each caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, get_args

from rcg.core.errors import UserError
from rcg.core.schema import Range, Size
from rcg.encoders.recipes import MOCO_V3, RECIPES, MethodName
from rcg.encoders.shape import EncoderShape
from rcg.scripts._command import flags, last_value, run_command
from rcg.training.config import TrainingConfig


@dataclass
class Config:
    """Train an SSLEncoder."""

    data: str
    """A folder of images, WebDataset shards (of rcg-synthesize), a zip archive, a table of images, a data set on
    the Hub (hf:OWNER/NAME:SPLIT), or an embedded set:
    shapes[:n=2000,size=32,seed=0] or clothing[:split=train,…]. Labels are used for logging only."""
    eval_data: str | None = None
    """Labelled images whose k-NN accuracy is logged (default: a part of --data, when it has labels). With captions for --data,
    they are both parts."""
    eval_samples: Annotated[int, Range(8, 10**9)] = 2000
    """Images that an evaluation looks at, at most; a quarter of them are classified."""
    source_size: Size | None = None
    """Side in pixels at which images are read and augmented, before they are resized to --image-size (default: that)."""
    method: MethodName = "moco-v3"
    """How: moco-v3, simclr, byol, dino and mae learn from single images, stablerep and synclr from several images of one
    caption, stablerep+ and clip from captions, too; `--method NAME --help` lists its own flags."""
    start_from: str | None = None
    """Begin with the weights of another encoder of this architecture: folder of it or of its pipeline, or name in the box
    (rcg/cifar10). How it normalises, resizes and pools comes along, its projection head where it is of the same kind and sizes."""
    shape: EncoderShape = field(default_factory=EncoderShape)
    """Sizes of the encoder."""
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(**MOCO_V3))
    """The training loop. Only images of one forward pass are each other's negatives: keep --micro-batch-size large."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if min(self.training.batch_size, self.training.micro_batch_size or 2) < 2:
            raise UserError("training an encoder needs at least 2 images in a pass; raise --(micro-)batch-size.")
        layers = max(self.shape.head_layers, getattr(getattr(self, "recipe", None), "predictor_layers", 0))
        if self.shape.head_hidden_dim and layers == 1:
            raise UserError(f"--head-hidden-dim has no effect with --method {self.method} and one layer; leave it out.")


def _config_of(method: MethodName) -> type[Any]:
    recipe = RECIPES[method]
    loop = {**MOCO_V3, **recipe.TRAINING}
    fields: list[Any] = [
        ("recipe", recipe, field(default_factory=recipe)),
        ("shape", EncoderShape, field(default_factory=lambda: EncoderShape(**recipe.SHAPE))),
        ("training", TrainingConfig, field(default_factory=lambda: TrainingConfig(**loop))),
    ]
    return make_dataclass("Config", fields, bases=(Config,))


CONFIGS: dict[str, type[Any]] = {method: _config_of(method) for method in RECIPES}
"""The flags of each method: those above, some with other defaults, and its own."""


def run(config: Any) -> None:
    """Build encoder and data, and train."""
    import torch

    from rcg.core.components import load_any
    from rcg.data.groups import GroupedDataset
    from rcg.data.images import ImageDataset
    from rcg.data.sources import open_source
    from rcg.encoders.methods import start_from
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.encoders.train import EncoderStage
    from rcg.training.loop import train
    from rcg.training.stage import BatchDataset

    recipe = config.recipe
    torch.manual_seed(config.training.seed)
    head = {} if recipe.head == "mocov3" else {"head_type": recipe.head}
    encoder = SSLEncoder(**config.shape.config(), **head, antialias=True)
    side = config.source_size or config.shape.image_size
    objective = recipe.objective(encoder, side)  # what it cannot use is said before any data is opened
    if config.start_from is not None:
        start_from(objective, load_any((SSLEncoder,), config.start_from))
    plain = ImageDataset(open_source(config.data), side)
    dataset: BatchDataset = plain
    if recipe.samples.images is not None:
        dataset = GroupedDataset(plain, recipe.samples.images, recipe.samples.caption_bytes)
    eval_dataset = None
    if config.eval_data is not None:
        eval_dataset = ImageDataset(open_source(config.eval_data), side)
        if not eval_dataset.class_names:
            raise UserError("--eval-data needs labels; sort its images into a folder for each class, or leave it out.")
        if plain.class_names and eval_dataset.class_names != plain.class_names:
            raise UserError("--eval-data needs labels of the same classes as --data; sort both into class folders.")
    stage = EncoderStage(
        objective,
        dataset,
        plain=plain,
        eval_dataset=eval_dataset,
        eval_samples=config.eval_samples,
    )
    train(stage, config.training, extra_config=flags(config, without=("training",)))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rcg-train-encoder`."""

    def config_of(arguments: Sequence[str]) -> type[Any]:
        return CONFIGS.get(last_value(arguments, "--method") or get_args(MethodName)[0], Config)

    run_command("rcg-train-encoder", config_of, run, "Train an encoder from scratch on your own images.", argv)


if __name__ == "__main__":
    main()
