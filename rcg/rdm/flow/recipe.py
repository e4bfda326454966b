"""A flow of representations from nothing: the flags that are its own, and what they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rcg.core.schema import Depth, Range, Size

if TYPE_CHECKING:
    from rcg.rdm.flow.objective import FlowObjective
    from rcg.rdm.protocol import Task


@dataclass
class FlowRecipe:
    """Sizes and noise levels of a new `FlowMLP`; see `rcg.rdm.protocol.Recipe`."""

    width: Size = 1536
    """Hidden size of the MLP."""
    depth: Depth = 12
    """Residual blocks of the MLP."""
    context_dim: Size = 512
    """Size of the class embedding."""
    time_shift: Annotated[float, Range(0.01, 100)] | None = None
    """Median odds of noise to data in training and sampling (default: those at which noise hides half of the data's variance)."""
    time_std: Annotated[float, Range(0, 10, "(]")] = 1.0
    """Spread of the logit of the noise levels in training."""

    def objective(self, task: Task) -> FlowObjective:
        """A new model, ready to be trained."""
        from rcg.rdm.flow.flow_mlp import FlowMLP
        from rcg.rdm.flow.objective import FlowObjective

        rdm = FlowMLP(
            representation_dim=task.representation_dim,
            width=self.width,
            depth=self.depth,
            num_classes=task.num_classes,
            context_dim=self.context_dim,
            class_dropout=task.class_dropout,
            label_counts=task.label_counts,
            standardized=task.standardized,
        )
        return FlowObjective(rdm, self.time_shift, self.time_std)
