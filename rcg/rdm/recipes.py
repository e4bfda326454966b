"""Each method's own flags of `rcg-train-rdm`, by `--method`. Imports no torch, so that `--help` stays quick."""

from __future__ import annotations

from typing import Any, Literal

from rcg.rdm.codes.recipe import CodesRecipe
from rcg.rdm.ddpm.recipe import DDPMRecipe
from rcg.rdm.flow.recipe import FlowRecipe

MethodName = Literal["ddpm", "flow", "codes"]
RECIPES: dict[MethodName, type[Any]] = {"ddpm": DDPMRecipe, "flow": FlowRecipe, "codes": CodesRecipe}
"""Its keys are those of `rcg.rdm.methods.METHODS`; see `Recipe` in `rcg.rdm.protocol`."""
