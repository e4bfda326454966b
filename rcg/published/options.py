"""What a user may choose where published files leave a choice. Knows no models, so that commands start quickly."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from rcg.core.errors import UserError
from rcg.core.schema import Depth, Size, flag_of

Weights = Literal["ema", "raw"]
Head = Literal["projection", "text", "none"]


@dataclass
class Options:
    """How files are read where they leave a choice."""

    weights: Weights | None = None
    """Of an RDM, DiT, ADM or LDM: the moving average (ema, the default), which the paper samples with, or the raw weights of
    the last step."""
    head: Head | None = None
    """Of an encoder: its self-supervised projection head (the default), StableRep+'s projection to text, or none (the class
    token)."""
    encoder_num_heads: Depth | None = None
    """Attention heads of an encoder of unpublished width (no tensor's shape tells)."""
    generator_num_heads: Depth | None = None
    """Attention heads of a MAGE (its encoder half) or DiT of unpublished width."""
    generator_image_size: Size | None = None
    """Side in pixels of the images of an ADM or LDM of unpublished width (and that its autoencoder was trained on)."""
    generator_decoder_num_heads: Depth | None = None
    """Attention heads of a MAGE's decoder half, if not the published 16."""

    def refuse_others(self, offered: Collection[str], files: str) -> None:
        """Raise `UserError` if an option is given that is none of `offered`; `files` says in words what was to be read."""
        for name, value in vars(self).items():
            if value is not None and name not in offered:
                raise UserError(f"{flag_of(name)} has no effect on {files}; leave it out.")


def no_average(source: str) -> UserError:
    """The error for a file without the moving average that is asked for."""
    return UserError(f"{source} holds no averaged weights (model_ema.*); ask for the raw ones instead (--weights raw).")
