"""The one protocol through which training and the command see a method of training an encoder.

A new method is an objective (a file beside `moco.py` and `stablerep.py`; `methods.py` has what most of them share) and a recipe
with its flags in `recipes.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from rcg.encoders.ssl_encoder import SSLEncoder


@dataclass(frozen=True)
class Samples:
    """What one sample of a method is.

    Attributes:
        images: how many images of one caption; None: one image, whatever it belongs to.
        caption_bytes: length of the captions that go with them; 0 needs none.
    """

    images: int | None = None
    caption_bytes: int = 0


class Objective(Protocol):
    """What training asks of a method. An `nn.Module`, too; its state is what a checkpoint holds.

    Attributes:
        name: of the objective in checkpoints.
        compares: whether its loss compares samples with each other.
    """

    name: str
    compares: bool

    @property
    def encoder(self) -> SSLEncoder:
        """The encoder under training, which is looked at and exported."""
        ...

    def prepare(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Augment a batch on its device, without gradient: `images` uint8 [B, 3, S, S] (with Samples.images: [B, m, 3, S, S]
        and `identities`) → `view1`, `view2`, …, float [B, 3, S, S] in [0, 1], and what else `forward` needs."""
        ...

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`loss` and other scalars of a prepared batch."""
        ...

    def advance(self, progress: float) -> None:
        """After each optimiser step, with the share of the training that is done, in [0, 1]."""
        ...

    def identity(self) -> dict[str, Any]:
        """Settings that a resumed run must share (JSON values)."""
        ...

    def export(self, folder: Path) -> None:
        """Write the encoder, and what else is of use after training, into `folder`."""
        ...


class Recipe(Protocol):
    """A method's own flags of `rcg-train-encoder`, a dataclass with a default for each. Imports no torch."""

    head: ClassVar[str]
    """Type of the encoder's projection head, see `rcg.encoders.heads.HeadType`."""
    samples: Samples
    """What it is trained on."""

    def objective(self, encoder: SSLEncoder, size: int) -> Objective:
        """The objective of a new encoder, from images of `size` pixels.

        Raises:
            UserError: settings that cannot be.
        """
        ...
