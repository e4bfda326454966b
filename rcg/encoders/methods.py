"""What objectives have in common: where one of `rcg.encoders.protocol.Objective`'s methods is not its own, it is here."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from rcg.core.dropout import silence
from rcg.core.errors import UserError
from rcg.encoders.augment import ViewRecipe, augmented
from rcg.encoders.ssl_encoder import SSLEncoder

SEEING = ("mean", "std", "interpolation", "antialias", "pool")
"""What of an encoder's configuration its weights have got used to."""


def rows_of(views: Sequence[Tensor]) -> Tensor:
    """Views [B, …] in one batch [B · views, …], a sample's together, as `rcg.core.draws` wants them."""
    return torch.stack(list(views), 1).flatten(0, 1)


def check_head(encoder: SSLEncoder, method: str) -> None:
    """Raise `UserError` unless the encoder has a projection head."""
    if encoder.head is None:
        raise UserError(f"{method} trains an encoder with a projection head; give it head_layers of 1 or more.")


def momentum_at(progress: float, start: float) -> float:
    """Momentum of the target encoder: half a cosine from `start` to 1 as `progress` goes from 0 to 1."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """slow ← momentum · slow + (1 − momentum) · fast, for the parameters that are trained in `fast`."""
    pairs = zip(slow.parameters(), fast.parameters(), strict=True)
    trained = [(own, other.detach()) for own, other in pairs if other.requires_grad]
    own, other = ([p[i] for p in trained] for i in (0, 1))
    torch._foreach_lerp_(own, other, 1 - momentum)


@torch.no_grad()
def start_from(objective: nn.Module, other: SSLEncoder) -> None:
    """Give a method's encoders (the one under training and those that follow it) the weights of a trained one.

    They see images as it does, too: `mean`, `std`, `interpolation`, `antialias` and `pool` become those of the trained one.

    Args:
        objective: of a new training.
        other: of the same architecture; its projection head is taken over where it is of the same type and sizes; where it is
            not, a warning says so.

    Raises:
        UserError: another architecture, or other sizes of it.
    """
    theirs = (other.config.arch, other.config.arch_kwargs or {})
    new_head = False
    for encoder in [m for m in objective.modules() if isinstance(m, SSLEncoder)]:
        ours = (encoder.config.arch, encoder.config.arch_kwargs or {})
        if ours != theirs or _sizes(encoder.backbone) != _sizes(other.backbone):
            raise UserError(
                f"the weights to start from are of {theirs[0]} with {theirs[1]}, but a {ours[0]} with {ours[1]} is to be "
                "trained; give --arch and --arch-kwargs (or --width and --depth) of the former."
            )
        width = encoder.feature_dim
        encoder.register_to_config(**{name: other.config[name] for name in SEEING})
        if encoder.feature_dim != width:
            raise UserError(
                f"the weights to start from are of an encoder with pool {other.config.pool!r}, whose features have another width "
                f"than those to be trained ({encoder.feature_dim}, not {width}); start from another one."
            )
        encoder.backbone.load_state_dict(other.backbone.state_dict())
        own, given = encoder.head, other.head
        if own is None:
            continue
        if given is not None and encoder.config.head_type == other.config.head_type and _sizes(own) == _sizes(given):
            own.load_state_dict(given.state_dict())
        else:
            new_head = True
    if new_head:
        warnings.warn(
            "the weights to start from have no projection head of this kind and size, so this one is new.", stacklevel=2
        )


def _sizes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def views_of(batch: dict[str, Tensor]) -> list[Tensor]:
    """`view1`, `view2`, … of a prepared batch."""
    return [batch[name] for i in range(1, len(batch) + 1) if (name := f"view{i}") in batch]


class Method(nn.Module):
    """See `rcg.encoders.protocol.Objective`.

    Attributes:
        shown: name of the encoder that is looked at and exported; as in checkpoints.
        recipes: of the views.
        language: a caption encoder that is trained along, if there is one.
    """

    shown: str = "model"
    compares: bool = True
    name: str
    recipes: Sequence[ViewRecipe]
    _settings: dict[str, Any]

    @property
    def encoder(self) -> SSLEncoder:
        """The encoder that is looked at and exported."""
        return cast(SSLEncoder, getattr(self, self.shown))

    def prepare(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Views `view1`, `view2`, … by each recipe, float [B, 3, S, S] in [0, 1]."""
        return augmented(batch["images"], self.recipes)

    def advance(self, progress: float) -> None:
        """Keep the learned scale of a caption encoder in its range."""
        if (language := getattr(self, "language", None)) is not None:
            language.clamp_scale()

    def identity(self) -> dict[str, Any]:
        """Objective and augmentation."""
        return {self.name: self._settings, "augmentation": [dataclasses.asdict(recipe) for recipe in self.recipes]}

    def export(self, folder: Path) -> None:
        """Write the encoder, with all that its representations need, and a caption encoder into `language`."""
        self.encoder.save_pretrained(folder)
        if (language := getattr(self, "language", None)) is not None:
            language.save_pretrained(folder / "language")


class Followed(Method):
    """An encoder with a predictor, and a copy of the encoder that follows it slowly, as MoCo-v3 and BYOL have them.

    Attributes:
        following: name of the copy, as in checkpoints. Its BatchNorm statistics are its own, from its own batches.

    Raises:
        UserError: no projection head, or a momentum out of range.
    """

    following: str

    def __init__(self, encoder: SSLEncoder, method: str, momentum: float, recipes: Sequence[ViewRecipe]) -> None:
        check_head(encoder, method)
        if not 0 <= momentum <= 1:
            raise UserError(f"the momentum is {momentum}, but it must lie in [0, 1].")
        super().__init__()
        self.add_module(self.shown, encoder)
        self.add_module(self.following, copy.deepcopy(encoder).requires_grad_(False))
        silence(self.copied)
        self.predictor: nn.Module
        self.momentum, self.recipes = momentum, recipes

    @property
    def copied(self) -> SSLEncoder:
        """The copy."""
        return cast(SSLEncoder, getattr(self, self.following))

    def both_views(self, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Features of `view1`, predictions of both views, and what the copy makes of both, without gradient."""
        views = [batch["view1"], batch["view2"]]
        features = [self.encoder.features(view) for view in views]
        predictions = [self.predictor(self.encoder.project(f)) for f in features]
        with torch.no_grad():
            targets = [self.copied.project(self.copied.features(view)) for view in views]
        return features[0], predictions, targets

    def advance(self, progress: float) -> None:
        """Move the copy."""
        follow(self.copied, self.encoder, momentum_at(progress, self.momentum))
