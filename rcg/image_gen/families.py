"""Which families of image generators there are. A new one is one more line here and a room of its own beside `mage`."""

from __future__ import annotations

from typing import Any

from torch import nn

from rcg.core.errors import UserError
from rcg.image_gen.mage.generator import MageGenerator
from rcg.image_gen.mage.scheduler import MaskGITScheduler
from rcg.image_gen.mage.transformer import MageTransformer
from rcg.image_gen.protocol import ImageGenerator
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer

FAMILIES: dict[type[nn.Module], type[Any]] = {MageTransformer: MageGenerator}
"""Class of the model → its `ImageGenerator`."""
MODELS: tuple[type[nn.Module], ...] = tuple(FAMILIES)
SCHEDULERS: tuple[type[Any], ...] = (MaskGITScheduler,)
"""Schedulers of our own; diffusers' serve, too."""
TOKENIZERS: tuple[type[nn.Module], ...] = (VQTokenizer,)


def open_generator(model: nn.Module, scheduler: Any, tokenizer: nn.Module | None) -> ImageGenerator:
    """The parts of an image generator as one thing that draws.

    Raises:
        UserError: a model of no family.
    """
    for cls, family in FAMILIES.items():
        if isinstance(model, cls):
            generator: ImageGenerator = family(model, scheduler, tokenizer)
            return generator
    names = ", ".join(cls.__name__ for cls in FAMILIES)
    raise UserError(f"{type(model).__name__} is no image generator that this library knows ({names}).")
