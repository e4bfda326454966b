"""`rcg-train-generator`: train what turns a representation (or a class, or nothing) into an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import tyro

from rcg.core.errors import UserError
from rcg.core.schema import CountOrZero, Depth, Positive, Size, flag_of
from rcg.image_gen.recipes import RECIPES, Arch
from rcg.scripts._command import flags, last_value, run_command
from rcg.training.config import TrainingConfig

if TYPE_CHECKING:
    from rcg.data.cache import Cache
    from rcg.data.images import ImageDataset
    from rcg.image_gen.protocol import Family, Objective


@dataclass
class Config:
    """Flags of rcg-train-generator."""

    data: str
    """A cache with the generator's codes (from rcg-cache), or an image source, on which the frozen models run every step."""
    condition: Literal["representation", "class", "cluster", "none"]
    """What images are generated from. A cluster needs a cache made with rcg-cache --clusters. The paper's comparison is
    runs that differ in this and --out only."""
    arch: Arch = "mage"
    """The family of the generator; `--arch NAME --help` lists its own flags."""
    tokenizer: Path | None = None
    """Folder of the frozen tokenizer. With images it runs on every step; a cache must be its work. Draws the previews."""
    encoder: Path | None = None
    """Folder of the frozen encoder, or name in the box (rcg/cifar10), for condition representation. With images it runs on
    every step; a cache must be its work."""
    start_from: str | Path | None = None
    """Begin with the weights of another generator of this family and these sizes: folder of it or of its pipeline, or name in
    the box (rcg/cifar10). Its condition may be another one (of an LDM, if its token is as wide; a MAGE without condition begins
    with one without). Few images, or little time, gain most."""
    align_encoder: Path | None = None
    """Folder of a frozen encoder, or name in the box, whose map of each image a transformer's inner tokens are to show
    (REPA); better images after fewer steps. A cache must hold images."""
    align_weight: Positive | None = None
    """Weight of that in the loss (default: 0.5)."""
    align_depth: Depth | None = None
    """Blocks before the tokens in question (default: a third of all)."""
    image_size: Size | None = None
    """With images: side in pixels of the random crops (default: the size that the tokenizer was made for)."""
    held_out: CountOrZero = 256
    """Images (at most a tenth of the data) that are not trained on; the evaluation looks at them."""
    ema: bool = False
    """Keep the moving average of the weights and export it (the paper does not; short runs gain by it)."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            out=tyro.MISSING, epochs=200, batch_size=256, base_lr=1.5e-4, warmup=0.05, clip_grad=3.0
        )
    )
    """The training loop."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if self.encoder is not None and self.condition != "representation":
            raise UserError(f"--encoder has no effect with --condition {self.condition}; leave it out.")
        recipe = getattr(self, "recipe", None)  # of a family, see `CONFIGS`
        if self.condition == "none" and recipe and recipe.condition_dropout != type(recipe)().condition_dropout:
            raise UserError("--condition-dropout has no effect with --condition none; leave it out.")
        for name in ("align_weight", "align_depth"):
            if getattr(self, name) is not None and self.align_encoder is None:
                raise UserError(f"{flag_of(name)} has no effect without --align-encoder; leave it out.")


CONFIGS: dict[str, type[Any]] = {
    arch: make_dataclass("Config", [("recipe", recipe, field(default_factory=recipe))], bases=(Config,))
    for arch, recipe in RECIPES.items()
}
"""The flags of each family: those above and its own."""


def open_data(config: Config, family: Family, tokenizer: Any, encoder: Any) -> Cache | ImageDataset:
    """The data set that the flags name, checked against the frozen models.

    Args:
        config: the flags.
        family: of the generator.
        tokenizer: the frozen tokenizer, or None.
        encoder: the frozen `SSLEncoder`, or None.

    Raises:
        UserError: a cache that lacks a field or was computed by other models, or images without models.
    """
    from rcg.data.cache import Cache, is_cache
    from rcg.data.embedded.sets import open_embedded
    from rcg.data.images import ImageDataset
    from rcg.data.places import find
    from rcg.data.sources import open_source
    from rcg.image_gen.tokenizers.codec import codec_of

    by_representation, by_cluster = config.condition == "representation", config.condition == "cluster"
    if is_cache(config.data):
        if config.image_size is not None:
            raise UserError("--image-size has no effect with a cache, whose images have a size already; leave it out.")
        extra = ["representations"] * by_representation + ["clusters"] * by_cluster
        if config.align_encoder is not None and family.field != "images":
            extra.append("images")
        cache = Cache(config.data, [family.field, *extra])
        cache.require(family.field, tokenizer)
        if by_representation:
            cache.require("representations", encoder)
        return cache
    if by_cluster:
        raise UserError(
            f"{config.data} is not a cache, and condition cluster needs one: make it with rcg-cache --encoder … --clusters …"
        )
    lacks = [("images need a tokenizer", "--tokenizer")] * (tokenizer is None and bool(family.tokenizers))
    lacks += [("condition representation needs an encoder", "--encoder")] * (by_representation and encoder is None)
    if lacks:
        if open_embedded(config.data) is None:
            find(config.data)  # refuses a name that is mistyped, without opening a single image
        (why, flag), *_ = lacks
        raise UserError(
            f"{config.data} is not a cache, and {why}: add {flag} DIR, or compute a cache first with rcg-cache."
        )
    source = open_source(config.data)
    codec = None if tokenizer is None else codec_of(tokenizer)
    size = config.image_size or (codec.image_size if codec is not None else None)
    if size is None:
        raise UserError("nothing says at what size to train; add --image-size.")
    if codec is not None and size % codec.factor:
        raise UserError(f"--image-size {size} is no multiple of {codec.factor}, by which the tokenizer shrinks images.")
    return ImageDataset(source, size, "crop_flip")


def aligned(objective: Objective, family: Family, config: Config) -> Objective:
    """The objective with representation alignment, as the flags say; `UserError` for a family that cannot be aligned."""
    from rcg.core.components import load_model
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.image_gen.alignment import DEFAULT_WEIGHT, AlignedObjective

    if family.blocks is None:
        raise UserError(f"--align-encoder has no effect with --arch {config.arch}; leave it out.")
    assert config.align_encoder is not None
    encoder = load_model(SSLEncoder, config.align_encoder)
    weight = DEFAULT_WEIGHT if config.align_weight is None else config.align_weight
    return AlignedObjective(objective, family.blocks(objective.model), encoder, weight, config.align_depth)


def run(config: Any) -> None:
    """Train the model that the flags describe."""
    import torch

    from rcg.core.components import load_any, load_model
    from rcg.data.cache import Cache
    from rcg.data.clusters import cluster_counts
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.image_gen.families import FAMILIES
    from rcg.image_gen.protocol import Task
    from rcg.image_gen.tokenizers.codec import codec_of
    from rcg.image_gen.train import GeneratorStage
    from rcg.training.loop import train

    family = FAMILIES[config.arch]
    if config.tokenizer is not None and not family.tokenizers:
        raise UserError(f"--tokenizer has no effect with --arch {config.arch}, which needs none; leave it out.")
    tokenizer = None if config.tokenizer is None else load_any(family.tokenizers, config.tokenizer)
    encoder = None if config.encoder is None else load_model(SSLEncoder, config.encoder)
    data = open_data(config, family, tokenizer, encoder)
    if config.condition == "class" and data.labels is None:
        raise UserError(
            f"--condition class needs labels, but {config.data} has none; put each class in a folder of its own, or use "
            "--condition representation or none."
        )
    if isinstance(data, Cache):
        codes_shape = data.fields[family.field]
        representation_dim = data.fields.get("representations", (None,))[0]
        encoder = None  # its work is in the cache
    else:
        codes_shape = (3, data.size, data.size)
        if tokenizer is not None:
            with torch.no_grad():
                codes_shape = tuple(codec_of(tokenizer).encode(torch.zeros(1, *codes_shape)).shape[1:])
        representation_dim = None if encoder is None else encoder.representation_dim
    torch.manual_seed(config.training.seed)
    num_classes = data.num_classes if config.condition == "class" else None
    counts = cluster_counts(data) if config.condition == "cluster" and isinstance(data, Cache) else None
    num_classes = num_classes if counts is None else len(counts)
    task = Task(config.condition, codes_shape, representation_dim, num_classes, counts, tokenizer)
    objective = config.recipe.objective(task)
    if tokenizer is not None:
        objective.generator.check()  # now, not when hours have gone by
    if config.align_encoder is not None:
        objective = aligned(objective, family, config)
    start = None if config.start_from is None else load_any((family.model,), config.start_from)
    stage = GeneratorStage(objective, data, encoder=encoder, held_out=config.held_out, ema=config.ema, start=start)
    train(stage, config.training, extra_config=flags(config, without=("training",)))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rcg-train-generator`."""

    def config_of(arguments: Sequence[str]) -> type[Any]:
        return CONFIGS.get(last_value(arguments, "--arch") or get_args(Arch)[0], Config)

    run_command("rcg-train-generator", config_of, run, "Train the image generator.", argv)


if __name__ == "__main__":
    main()
