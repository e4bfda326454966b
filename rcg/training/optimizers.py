"""What moves the weights of an objective: AdamW, or Muon for the matrices inside its blocks and AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.training.config import OptimizerName

MATRIX_RATE = 2.0
"""Muon's learning rate as a multiple of AdamW's, when both change weights by as much (as measured on PixelDiT)."""


def hidden_matrices(objective: nn.Module) -> list[Tensor]:
    """Weights of the linear layers inside repeated blocks (`nn.ModuleList`).

    Embeddings and heads, which stand outside, are not among them, nor are modulations: what turns a condition into shifts,
    scales and gates.
    """
    blocks = [f"{name}." for name, module in objective.named_modules() if isinstance(module, nn.ModuleList)]
    return [
        module.weight
        for name, module in objective.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(tuple(blocks)) and "modulation" not in name.split(".")
    ]


class ObjectiveOptimizer:
    """The optimisers of one objective, as if they were one.

    Muon (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982, for its scale) replaces a matrix of momenta by the nearest
    orthogonal one, so that a step is as large in all directions. Biases, norms, embeddings, convolutions and heads stay with
    AdamW. Muon has a momentum only, so that it needs half of AdamW's memory.

    Args:
        objective: whose weights these are.
        groups: `params` and `weight_decay` of each, see `Stage.param_groups`.
        name: "adamw" or "muon".
        betas: AdamW's, whose kernel is the fused one.

    Raises:
        UserError: Muon, but this PyTorch has none, or the model has no such matrices.
    """

    def __init__(
        self,
        objective: nn.Module,
        groups: list[dict[str, Any]],
        name: OptimizerName,
        betas: tuple[float, float],
    ) -> None:
        matrices = {id(p) for p in hidden_matrices(objective)} if name == "muon" else set()
        split = [(g, [p for p in g["params"] if id(p) in matrices]) for g in groups]
        rest = [g | {"params": [p for p in g["params"] if id(p) not in matrices]} for g in groups]
        chosen = [g | {"params": some} for g, some in split if some]
        self._adamw = torch.optim.AdamW([g for g in rest if g["params"]], lr=0.0, betas=betas, fused=True)
        self._muon: torch.optim.Optimizer | None = None
        if name == "muon":
            self._muon = _muon(chosen)
        self.parameters: list[nn.Parameter] = [p for g in groups for p in g["params"]]

    def _parts(self) -> list[torch.optim.Optimizer]:
        return [self._adamw] if self._muon is None else [self._adamw, self._muon]

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """What is remembered of each parameter that has been moved."""
        return {parameter: values for part in self._parts() for parameter, values in part.state.items()}

    def remember(self, parameter: nn.Parameter, values: dict[str, Any]) -> None:
        """Put back what `state` held for a parameter."""
        for part in self._parts():
            if any(parameter is p for g in part.param_groups for p in g["params"]):
                part.state[parameter] = values

    def step(self, lr: float, good: Tensor) -> None:
        """Move the weights, and forget their gradients.

        Args:
            lr: the learning rate of now.
            good: bool, whether the gradients are finite; if not, all stays as it is. (AdamW looks at it where it is; Muon
                reads it from the device.)
        """
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.found_inf = (~good).float()  # type: ignore[attr-defined]  # fused AdamW then leaves all as it is
        self._adamw.step()
        if self._muon is not None and bool(good):
            for group in self._muon.param_groups:
                group["lr"] = MATRIX_RATE * lr
            self._muon.step()
        for part in self._parts():
            part.zero_grad(set_to_none=True)


def _muon(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"--optimizer muon needs PyTorch 2.9 or later, but this is {torch.__version__}; take adamw.")
    if not groups:
        raise UserError("--optimizer muon: this model has no linear layers inside blocks; take adamw.")
    return torch.optim.Muon(groups, lr=0.0, adjust_lr_fn="match_rms_adamw")
