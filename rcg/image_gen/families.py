"""Which families of image generators there are. A new one is one more line here and in `recipes`, and a room beside `mage`."""

from __future__ import annotations

from typing import Any

from torch import nn

from rcg.core.errors import UserError
from rcg.image_gen.adm.generator import ADMGenerator
from rcg.image_gen.adm.unet import ADMUNet
from rcg.image_gen.diffusion.objective import DiffusionObjective
from rcg.image_gen.edm.objective import EDMObjective
from rcg.image_gen.edm.unet import EDMUNet
from rcg.image_gen.latent_dit.generator import DiTGenerator
from rcg.image_gen.latent_dit.transformer import DiT
from rcg.image_gen.ldm.generator import LDMGenerator
from rcg.image_gen.ldm.unet import LDMUNet
from rcg.image_gen.mage.generator import MageGenerator
from rcg.image_gen.mage.objective import MageObjective
from rcg.image_gen.mage.scheduler import MaskGITScheduler
from rcg.image_gen.mage.transformer import MageTransformer
from rcg.image_gen.pixel_dit.transformer import PixelDiT
from rcg.image_gen.pixels.generator import PixelGenerator
from rcg.image_gen.pixels.objective import PixelObjective
from rcg.image_gen.pixels.scheduler import KarrasFlowScheduler
from rcg.image_gen.protocol import Family, ImageGenerator
from rcg.image_gen.recipes import Arch
from rcg.image_gen.tokenizers.autoencoder import AUTOENCODERS
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer

FAMILIES: dict[Arch, Family] = {
    "mage": Family(
        MageTransformer,
        MageGenerator,
        lambda own: MageObjective(own.model, scheduler=own.scheduler, tokenizer=own.tokenizer),
        "tokens",
        (MaskGITScheduler,),
        (VQTokenizer,),
        about="a masked token transformer reveals the tokens of an image in a few parallel steps, and a tokenizer decodes "
        "them",
    ),
    "dit": Family(
        DiT,
        DiTGenerator,
        DiffusionObjective,
        "latents",
        (),
        AUTOENCODERS,
        blocks=lambda model: list(model.blocks),
        about="a diffusion transformer takes the noise from latents, and an autoencoder decodes them",
    ),
    "pixel-dit": Family(
        PixelDiT,
        PixelGenerator,
        lambda own: PixelObjective(own.model, scheduler=own.scheduler),
        "images",
        (KarrasFlowScheduler,),
        blocks=lambda model: list(model.blocks),
        about="a transformer turns noise into pixels by flow matching",
    ),
    "edm": Family(
        EDMUNet,
        PixelGenerator,
        lambda own: EDMObjective(own.model, scheduler=own.scheduler),
        "images",
        (KarrasFlowScheduler,),
        about="a U-Net with EDM's preconditioning takes the noise from pixels",
    ),
    "adm": Family(ADMUNet, ADMGenerator, DiffusionObjective, "images", about="a U-Net takes the noise from pixels"),
    "ldm": Family(
        LDMUNet,
        LDMGenerator,
        DiffusionObjective,
        "latents",
        (),
        AUTOENCODERS,
        about="a U-Net with cross-attention takes the noise from latents, and an autoencoder decodes them",
    ),
}
MODELS: tuple[type[nn.Module], ...] = tuple(family.model for family in FAMILIES.values())
SCHEDULERS: tuple[type[Any], ...] = tuple({cls: None for family in FAMILIES.values() for cls in family.schedulers})
"""Schedulers of our own; diffusers' serve, too."""
TOKENIZERS: tuple[type[nn.Module], ...] = tuple(
    {cls: None for family in FAMILIES.values() for cls in family.tokenizers}
)


def family_of(model: Any) -> Family:
    """The family of an image generator's model; `UserError` for a model of none."""
    for family in FAMILIES.values():
        if isinstance(model, family.model):
            return family
    names = ", ".join(cls.__name__ for cls in MODELS)
    raise UserError(f"{type(model).__name__} is no image generator that this library knows ({names}).")


def open_generator(
    model: Any, scheduler: Any, tokenizer: nn.Module | None, guiding_model: nn.Module | None = None
) -> ImageGenerator:
    """The parts of an image generator as one thing that draws.

    Raises:
        UserError: a model of no family, or a guiding model that does not fit it.
    """
    family = family_of(model)
    _check_guiding(model, guiding_model, family.model)
    return family.generator(model, scheduler, tokenizer, guiding_model)


def _check_guiding(model: Any, guiding: Any, family: type[Any]) -> None:
    """Refuse a guiding model that makes other codes, or takes another condition."""
    if guiding is None:
        return
    if not isinstance(guiding, family):
        raise UserError(f"the guiding model is a {type(guiding).__name__}; give a weaker {family.__name__}.")
    given = ("condition", "representation_dim", "num_classes")
    made = (
        "image_size", "sample_size", "in_channels", "grid_size", "num_codes", "vocab_size", "mask_token_id", "prediction_type"
    )  # fmt: skip
    for name in given + made:
        ours, its = model.config.get(name), guiding.config.get(name)
        if ours != its:
            raise UserError(
                f"the guiding model has {name} {its}, but the image generator {ours}; give a smaller or less trained "
                "model of the same kind."
            )
