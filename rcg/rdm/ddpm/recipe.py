"""The published RDM from nothing: the flags that are its own, and what they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rcg.core.schema import Depth, Size

if TYPE_CHECKING:
    from rcg.rdm.ddpm.objective import DDPMObjective
    from rcg.rdm.protocol import Task


@dataclass
class DDPMRecipe:
    """Sizes and target of a new `RepresentationMLP`; see `rcg.rdm.protocol.Recipe`."""

    width: Size = 1536
    """Hidden size of the MLP."""
    depth: Depth = 12
    """Residual blocks of the MLP."""
    context_dim: Size = 512
    """Size of the class embedding."""
    prediction_type: Literal["sample", "epsilon", "v_prediction"] = "sample"
    """What the model predicts: clean representations (the paper), noise, or velocity."""

    def objective(self, task: Task) -> DDPMObjective:
        """A new model, ready to be trained."""
        from rcg.rdm.ddpm.objective import DDPMObjective
        from rcg.rdm.representation_mlp import RepresentationMLP

        rdm = RepresentationMLP(
            representation_dim=task.representation_dim,
            width=self.width,
            depth=self.depth,
            num_classes=task.num_classes,
            context_dim=self.context_dim,
            class_dropout=task.class_dropout,
            label_counts=task.label_counts,
        )
        return DDPMObjective(rdm, self.prediction_type)
