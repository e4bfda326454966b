"""What the recipe is made of: sizes, shares of the time, least amounts. The numbers of the stages are those of the presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

import yaml

from rcg.core.errors import UserError
from rcg.encoders.recipes import MoCoV3Recipe
from rcg.encoders.shape import EncoderShape
from rcg.image_gen.pixel_dit.recipe import PixelDiTRecipe
from rcg.rdm.flow.recipe import FlowRecipe
from rcg.training.config import TrainingConfig

Made = TypeVar("Made")
LOOP = {field.name for field in dataclasses.fields(TrainingConfig)}


@dataclass(frozen=True)
class GeneratorSize:
    """One size of the image generator.

    Attributes:
        name: of the size.
        recipe: its sizes.
        lr: peak learning rate; narrower models take a higher one.
        images: that it must get to see, passes counted in, to be chosen before the next smaller one.
    """

    name: str
    recipe: PixelDiTRecipe
    lr: float
    images: int

    def work(self, image_size: int) -> float:
        """Multiplications for an image, up to a factor: what its time is guessed from where it was not measured."""
        recipe = self.recipe
        tokens, width = (image_size // recipe.patch_size) ** 2, recipe.width
        convolutions = sum(
            36 * channels**2 * tokens * 4 ** (len(recipe.conv_channels) - i)
            for i, channels in enumerate(recipe.conv_channels)
        )
        return float(recipe.depth * (12 * tokens * width**2 + 2 * tokens**2 * width) + convolutions)


@dataclass(frozen=True)
class Settings:
    """What the recipe chooses among; see `default_settings`.

    Attributes:
        generators: sizes, smallest first.
        generator, rdm, encoder: flags of the training loop of each stage (all but the length), as in a preset.
        held_out: images that the generator's evaluations look at.
        rdm_recipe: sizes of the RDM, a flow.
        encoder_shape, encoder_recipe: of an encoder that is trained anew, and of its objective.
        image_sizes: sides in pixels, smallest first.
        views: cached of each image; every other one is mirrored.
        shares: of the time for training that go to encoder and RDM; the generator has the rest.
        least: steps below which a stage is not worth its name.
        looks: evaluations, with their pictures, in a stage.
        reviews: shares of a stage's steps after which its length is set anew.
        scales: of guidance, that are tried. By the null condition, 2 and 3 were better than 1.5 for CIFAR-10's generators, by
            every figure but precision; by a weaker generator, 1.5 was the best for photographs of clothes.
        image_counts: how many images may be drawn in the end, largest first.
        tail: share of the budget for drawing and scoring.
        margin: share of the budget that is kept back.
        overhead: seconds to start or end a stage, beside its work.
        wanted_images: that the generator should see, if there are many; what a proposed budget is made for.
        start: size, and side in pixels, of the generator in the box, from whose weights one of that size begins; None: every
            generator begins with new ones.
    """

    generators: tuple[GeneratorSize, ...]
    generator: dict[str, Any]
    rdm: dict[str, Any]
    encoder: dict[str, Any]
    rdm_recipe: FlowRecipe
    encoder_shape: EncoderShape
    encoder_recipe: MoCoV3Recipe
    held_out: int = 256
    image_sizes: tuple[int, ...] = (32, 64)
    views: int = 2
    shares: dict[str, float] = dataclasses.field(default_factory=lambda: {"encoder": 0.3, "rdm": 0.08})
    least: dict[str, int] = dataclasses.field(default_factory=lambda: {"encoder": 50, "rdm": 100, "generator": 200})
    looks: dict[str, int] = dataclasses.field(default_factory=lambda: {"encoder": 2, "rdm": 2, "generator": 6})
    reviews: dict[str, tuple[float, ...]] = dataclasses.field(
        default_factory=lambda: {"encoder": (0.1, 0.5), "rdm": (0.2,), "generator": (0.05, 0.25, 0.5, 0.75)}
    )
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    image_counts: tuple[int, ...] = (2000, 1400, 1000, 700, 500, 350, 250, 180, 128, 96, 64)
    tail: float = 0.12
    margin: float = 0.02
    overhead: float = 1.0
    wanted_images: int = 500_000
    start: tuple[str, int] | None = None

    def size(self, name: str) -> GeneratorSize:
        """The generator's size of that name."""
        return next(size for size in self.generators if size.name == name)

    @property
    def batch_size(self) -> int:
        """Images in a step of the generator."""
        return int(self.generator["batch_size"])


def preset(name: str) -> dict[str, Any]:
    """The flags of a preset of `rcg/configs`, with underscores."""
    text = (resources.files("rcg.configs") / f"{name}.yaml").read_text()
    return {str(key).replace("-", "_"): value for key, value in yaml.safe_load(text).items()}


def part_of(flags: dict[str, Any], cls: type[Made], **changes: Any) -> Made:
    """The dataclass `cls` of those flags of a preset that are its own."""
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{k: v for k, v in flags.items() if k in names} | changes)


def loop_of(flags: dict[str, Any]) -> dict[str, Any]:
    """Those flags of a preset that are the training loop's, but for its length and how often it reports."""
    length = {"steps", "epochs", "log_every", "save_every", "eval_every", "preview_every"}
    return {k: v for k, v in flags.items() if k in LOOP - length}


def default_settings() -> Settings:
    """The recipe of the library.

    The generator is the pixel transformer of `generator-pixel-cifar10`, smaller or larger with the images that it will
    see; its learning rate falls as its width grows. The RDM is a flow, because that draws well with 8 evaluations.
    """
    generator, rdm, encoder = (preset(n) for n in ("generator-pixel-cifar10", "rdm-cifar10", "encoder-cifar10-long"))
    small = part_of(generator, PixelDiTRecipe)

    def sized(name: str, width: int, depth: int, heads: int, images: int) -> GeneratorSize:
        recipe = dataclasses.replace(small, width=width, depth=depth, num_heads=heads)
        return GeneratorSize(name, recipe, generator["lr"] * small.width / width, images)

    return Settings(
        generators=(
            sized("tiny", 128, 4, 2, 0),
            GeneratorSize("small", small, generator["lr"], 80_000),
            sized("base", 256, 8, 4, 2_000_000),
            sized("large", 384, 12, 6, 10_000_000),
        ),
        generator=loop_of(generator),
        rdm=loop_of(rdm),
        encoder=loop_of(encoder),
        rdm_recipe=part_of(rdm, FlowRecipe),
        encoder_shape=part_of(encoder, EncoderShape),
        encoder_recipe=part_of(encoder, MoCoV3Recipe),
    )


def check_image_size(settings: Settings, image_size: int | None) -> None:
    """Raise `UserError` for a size in pixels that the generator cannot make."""
    patch = settings.generators[0].recipe.patch_size
    if image_size is not None and image_size % patch:
        near = max(patch, round(image_size / patch) * patch)
        raise UserError(f"--image-size {image_size} is no multiple of {patch}, the generator's patches; take {near}.")
