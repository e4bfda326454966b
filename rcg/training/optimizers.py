"""What moves the weights of an objective: AdamW, or Muon for the matrices inside its blocks and AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.training.config import OptimizerName
from rcg.training.shards import cut, is_cut, joined, own, whole

MATRIX_RATE = 2.0
"""Muon's learning rate for linear layers as a multiple of AdamW's: measured on PixelDiT."""
CONVOLUTION_RATE = 3.0
"""The same for convolutions: measured on MoCo-v3 with a ResNet-18, which reaches AdamW's loss of step 160 to 240 in 10 to 19 %
fewer steps then, and in 7 to 14 % fewer at 1 (one seed each)."""


AT_ONCE = 2**26
"""Numbers of matrices that are put together at a time where they are cut up: 128 MiB."""


def _is_hidden(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.weight.shape[1] > 1  # those of a channel each are no matrices
    return isinstance(module, nn.Linear)


def block_lists(objective: nn.Module) -> dict[str, nn.ModuleList | nn.Sequential]:
    """What holds repeated blocks, by name: `nn.ModuleList`s, and `nn.Sequential`s of modules that have parts themselves (a
    ResNet's stages)."""
    return {
        name: module
        for name, module in objective.named_modules()
        if isinstance(module, nn.ModuleList)
        or (isinstance(module, nn.Sequential) and len(module) and all(any(m.children()) for m in module))
    }


def hidden_weights(objective: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the linear layers and convolutions inside repeated blocks, by name.

    Blocks are what `block_lists` hold. Embeddings and heads, which stand outside, are not among them, nor are modules called
    `modulation`, which turn a condition into shifts, scales and gates (those of other names are).
    """
    lists = [f"{name}." for name in block_lists(objective)]
    return {
        f"{name}.weight": module.weight
        for name, module in objective.named_modules()
        if _is_hidden(module) and name.startswith(tuple(lists)) and "modulation" not in name.split(".")
    }


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before a step, so that it is as large in all directions.

    Jordan et al. 2024; the scale of Liu et al. 2025 (arXiv 2502.16982), which makes the root mean square of a step 0.2 times
    the learning rate, about AdamW's. Nesterov's momentum, five Newton-Schulz iterations in bf16, decoupled weight decay.
    (PyTorch's own, which this equals on matrices, takes no convolutions and waits for the device.) A convolution's weight
    [out, in, h, w] is the matrix [out, in · h · w]. Of a weight that is cut up among processes each keeps the momentum of its own
    rows; the matrix is put together in bf16 for the iterations, which all processes then compute alike.

    Args:
        groups: `params` (of at least two dimensions), `weight_decay`, `lr`.
        momentum: in [0, 1).
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, good: Tensor) -> None:  # type: ignore[override]
        """Move the weights that have a gradient; `good`, a bool on their device: leave all as it is where it is false."""
        for group in self.param_groups:
            momentum, moved = group["momentum"], (group["lr"] * good).float()
            alike: dict[tuple[int, int, torch.device], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                alike[len(parameter), parameter.shape[1:].numel(), parameter.device].append(parameter)
            for (rows, columns, _), parameters in alike.items():
                scale = 0.2 * max(rows, columns) ** 0.5 * moved
                most = max(1, AT_ONCE // (rows * columns)) if is_cut(parameters[0]) else len(parameters)
                for some in (parameters[i : i + most] for i in range(0, len(parameters), most)):
                    steps = orthogonal(torch.stack([self._direction(p, momentum, good) for p in some])).float()
                    for parameter, step in zip(some, steps, strict=True):
                        moving = own(parameter)
                        moving.mul_(1 - group["weight_decay"] * moved)
                        moving.sub_(scale * own(cut(step.view(parameter.shape), parameter)))

    def _direction(self, parameter: nn.Parameter, momentum: float, good: Tensor) -> Tensor:
        """The whole matrix [A, B] of a parameter's step before it is made orthogonal, after its momentum has moved."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        mean = own(state["momentum_buffer"])
        gradient = torch.where(good, own(parameter.grad), mean)
        mean.lerp_(gradient, 1 - momentum)
        step = gradient.lerp_(mean, momentum)
        return whole(joined(step.bfloat16(), parameter)).flatten(1) if is_cut(parameter) else step.flatten(1)


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest orthogonal matrices: singular values above some 0.01 of the norm become 0.7 to 1.2.

    Args:
        matrices: [N, A, B].

    Returns:
        bfloat16 [N, A, B].
    """
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


class ObjectiveOptimizer:
    """The optimisers of one objective, as if they were one.

    Biases, norms, embeddings and heads stay with AdamW. Muon has a momentum only, so that it needs half of AdamW's memory.

    Args:
        objective: whose weights these are.
        groups: `params` and `weight_decay` of each, see `Stage.param_groups`.
        name: "adamw" or "muon".
        betas: AdamW's, whose kernel is the fused one.

    Raises:
        UserError: Muon, but the model has no such matrices.
    """

    def __init__(
        self,
        objective: nn.Module,
        groups: list[dict[str, Any]],
        name: OptimizerName,
        betas: tuple[float, float],
    ) -> None:
        hidden = {id(p) for p in hidden_weights(objective).values()} if name == "muon" else set()
        for_muon: list[dict[str, Any]] = []
        rest: list[dict[str, Any]] = []
        for group in groups:
            alike: dict[tuple[bool, float, bool], list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if id(p) in hidden:
                    alike[True, CONVOLUTION_RATE if p.ndim > 2 else MATRIX_RATE, False].append(p)
                else:
                    alike[False, 1.0, is_cut(p)].append(p)  # one kernel takes cut tensors or whole ones
            for (is_hidden, rate, _), some in alike.items():
                more = {"params": some, "rate": rate, "decay": group["weight_decay"]}
                (for_muon if is_hidden else rest).append(group | more)
        self._adamw = torch.optim.AdamW(rest, lr=0.0, betas=betas, fused=True)
        self._muon: Muon | None = None
        if name == "muon":
            if not for_muon:
                raise UserError(
                    "--optimizer muon: this model has no linear layers or convolutions in blocks; take adamw."
                )
            self._muon = Muon(for_muon)
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

    def step(self, lr: float, good: Tensor, decay: float = 1.0) -> None:
        """Move the weights, and forget their gradients.

        Args:
            lr: the learning rate of now.
            good: bool, whether the gradients are finite; if not, all stays as it is.
            decay: the weight decay of now, as a multiple of that of the groups.
        """
        for part in self._parts():
            for group in part.param_groups:
                group["lr"] = group["rate"] * lr
                group["weight_decay"] = group["decay"] * decay
        self._adamw.found_inf = (~good).float()  # type: ignore[attr-defined]  # fused AdamW then leaves all as it is
        self._adamw.step()
        if self._muon is not None:
            self._muon.step(good)
        for part in self._parts():
            part.zero_grad(set_to_none=True)
