"""Each family's own flags of `rcg-train-generator`, by `--arch`. Imports no torch, so that `--help` stays quick."""

from __future__ import annotations

from typing import Literal

from rcg.image_gen.mage.recipe import MageRecipe

Arch = Literal["mage"]
RECIPES: dict[Arch, type[MageRecipe]] = {"mage": MageRecipe}
"""Its keys are those of `rcg.image_gen.families.FAMILIES`; see `Recipe` in `rcg.image_gen.protocol`."""
