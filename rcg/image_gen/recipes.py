"""Each family's own flags of `rcg-train-generator`, by `--arch`. Imports no torch, so that `--help` stays quick."""

from __future__ import annotations

from typing import Any, Literal

from rcg.image_gen.adm.recipe import ADMRecipe
from rcg.image_gen.edm.recipe import EDMRecipe
from rcg.image_gen.latent_dit.recipe import DiTRecipe
from rcg.image_gen.ldm.recipe import LDMRecipe
from rcg.image_gen.mage.recipe import MageRecipe
from rcg.image_gen.pixel_dit.recipe import PixelDiTRecipe

Arch = Literal["mage", "dit", "pixel-dit", "edm", "adm", "ldm"]
RECIPES: dict[Arch, type[Any]] = {
    "mage": MageRecipe,
    "dit": DiTRecipe,
    "pixel-dit": PixelDiTRecipe,
    "adm": ADMRecipe,
    "ldm": LDMRecipe,
    "edm": EDMRecipe,
}
"""Its keys are those of `rcg.image_gen.families.FAMILIES`; see `Recipe` in `rcg.image_gen.protocol`."""
