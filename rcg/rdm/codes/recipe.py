"""A model over codes from nothing: the flags that are its own, and what they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcg.core.errors import UserError
from rcg.core.schema import Codes, Depth, ShareBelowOne, Size

if TYPE_CHECKING:
    from rcg.rdm.codes.objective import CodesObjective
    from rcg.rdm.protocol import Task

POSITIONS = 64
ENTRIES = 4
"""Of a representation to a code, by default. Of a mixture of Gaussians on a sphere of 64 numbers, codes of 256 values kept
this much precision (real data 0.89): 0.88 with 2 numbers a code, 0.78 with 4, 0.41 with 8."""


@dataclass
class CodesRecipe:
    """Sizes of a new `CodeTransformer`; see `rcg.rdm.protocol.Recipe`."""

    positions: Size | None = None
    """Codes of a representation, a divisor of its entries (default: 64, or one for about 4 entries)."""
    num_codes: Codes = 256
    """Values that a code has."""
    width: Size = 768
    """Size of the residual stream."""
    depth: Depth = 8
    """Blocks of the transformer."""
    num_heads: Depth = 12
    """Attention heads."""
    dropout: ShareBelowOne = 0.1
    """Dropout in the blocks."""

    def objective(self, task: Task) -> CodesObjective:
        """A new model, ready to be trained."""
        from rcg.rdm.codes.objective import CodesObjective
        from rcg.rdm.codes.transformer import CodeTransformer

        dim = task.representation_dim
        positions = self.positions or max(
            n for n in range(1, POSITIONS + 1) if dim % n == 0 and n <= max(1, dim // ENTRIES)
        )
        if dim % positions:
            raise UserError(
                f"--positions {positions} does not divide the {dim} numbers of a representation; take a divisor."
            )
        if self.width % self.num_heads:
            raise UserError(
                f"--width {self.width} does not split over --num-heads {self.num_heads}; make it a multiple."
            )
        rdm = CodeTransformer(
            representation_dim=dim,
            positions=positions,
            num_codes=self.num_codes,
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            num_classes=task.num_classes,
            class_dropout=task.class_dropout,
            label_counts=task.label_counts,
            dropout=self.dropout,
            standardized=task.standardized,
        )
        return CodesObjective(rdm)
