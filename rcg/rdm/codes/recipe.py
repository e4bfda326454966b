"""A model over codes from nothing: the flags that are its own, and what they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcg.core.errors import UserError
from rcg.core.schema import Codes, Depth, ShareBelowOne, Size

if TYPE_CHECKING:
    from rcg.rdm.codes.objective import CodesObjective
    from rcg.rdm.protocol import Task


@dataclass
class CodesRecipe:
    """Sizes of a new `CodeTransformer`; see `rcg.rdm.protocol.Recipe`."""

    positions: Size = 8
    """Codes of a representation, coarse to fine; as many evaluations draw one."""
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

        if self.width % self.num_heads:
            raise UserError(
                f"--width {self.width} does not split over --num-heads {self.num_heads}; make it a multiple."
            )
        rdm = CodeTransformer(
            representation_dim=task.representation_dim,
            positions=self.positions,
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
