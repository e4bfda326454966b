"""Which methods of drawing representations there are. A new one is one more line here and in `recipes`, and a room."""

from __future__ import annotations

from typing import Any

from torch import nn

from rcg.core.errors import UserError
from rcg.rdm.codes.generator import CodesGenerator
from rcg.rdm.codes.scheduler import CodeScheduler
from rcg.rdm.codes.transformer import CodeTransformer
from rcg.rdm.ddpm.generator import DDPMGenerator
from rcg.rdm.flow.flow_mlp import FlowMLP
from rcg.rdm.flow.generator import FlowGenerator
from rcg.rdm.protocol import Method, RepresentationGenerator
from rcg.rdm.recipes import MethodName
from rcg.rdm.representation_mlp import RepresentationMLP

METHODS: dict[MethodName, Method] = {
    "ddpm": Method(RepresentationMLP, DDPMGenerator, about="a diffusion model"),
    "flow": Method(FlowMLP, FlowGenerator, about="a flow model"),
    "codes": Method(
        CodeTransformer,
        CodesGenerator,
        (CodeScheduler,),
        about="a masked transformer over a residual quantiser's codes",
    ),
}
MODELS: tuple[type[nn.Module], ...] = tuple(method.model for method in METHODS.values())
SCHEDULERS: tuple[type[Any], ...] = tuple(cls for method in METHODS.values() for cls in method.schedulers)
"""Schedulers of our own; diffusers' serve, too."""


def method_of(model: nn.Module) -> Method:
    """The method of an RDM; `UserError` for a model of none."""
    for method in METHODS.values():
        if isinstance(model, method.model):
            return method
    names = ", ".join(cls.__name__ for cls in MODELS)
    raise UserError(f"{type(model).__name__} is no RDM that this library knows ({names}).")


def open_rdm(model: nn.Module, scheduler: Any) -> RepresentationGenerator:
    """An RDM and its scheduler as one thing that draws.

    Raises:
        UserError: a model of no method.
    """
    return method_of(model).generator(model, scheduler)
