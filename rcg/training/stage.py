"""What a stage tells the training loop. Read this first when adding a stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn

Batch = dict[str, torch.Tensor]


class BatchDataset(Protocol):
    """Anything that makes a batch from sample indices."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data changes; a resumed run must find the same."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> Batch:
        """The samples `indices` (int64 [B]) as CPU tensors with leading axis B.

        Whatever is random about sample *j* (its view, its crop) must follow from `seeds[j]` (uint64 [B]) alone: it
        depends on run seed, epoch and index, and not on the other samples of the batch.
        """
        ...


class Stage(ABC):
    """One thing to train: its modules, its data, its loss, what to log, draw and save.

    The loop moves `objectives` to the device, builds one optimiser for each, and calls, for every micro-batch,
    `prepare` (no gradient) and then each objective's `forward(batch) -> {"loss": scalar, name: scalar, …}` in order.
    Everything trained or remembered (momentum encoders, codebook counts) lives in an objective's parameters or
    persistent buffers: that is what a checkpoint holds. Frozen models are kept outside (see `Frozen`).
    Random numbers of a sample come from `rcg.core.draws`: they follow from (seed, epoch, sample), so that a run may go on
    with another number of processes. What belongs to no sample comes from torch's global random state, which is re-seeded
    before each micro-batch from (seed, step, its first row).

    Attributes:
        grouped: samples that are computed together share random numbers (`draws.shared`). A resumed run then computes
            together the samples that belonged together when it began.
        compares: the loss compares samples over all processes, which must have equally many.
        of_several: names of figures that compare the samples of a forward pass; they are left out where one has a single sample.
    """

    name: ClassVar[str]
    grouped: bool = False
    compares: bool = False
    of_several: ClassVar[tuple[str, ...]] = ()
    objectives: dict[str, nn.Module]
    dataset: BatchDataset

    def param_groups(self, objective: str, weight_decay: float) -> list[dict[str, Any]]:
        """Optimiser groups of one objective; by default matrices decay, vectors (biases, norms) do not."""
        parameters = [p for p in self.objectives[objective].parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]

    def ema_modules(self) -> dict[str, nn.Module]:
        """Modules (parts of objectives) whose exponential moving average is kept; evaluated and exported in its place."""
        return {}

    def kept_whole(self) -> list[nn.Module]:
        """Objectives, or parts of them, that FSDP must not cut up, since they are used outside of their objective's own
        forward pass, or written in it. Small ones: each process then holds them whole."""
        return []

    def to(self, device: torch.device) -> None:
        """Move what is not part of an objective (frozen models) to the device."""

    def least(self) -> int:
        """Fewest samples of a forward pass that it can be trained with; after `to`."""
        return 1

    def fit(self, device: torch.device) -> None:
        """What a new run finds in its data once, before its first step, in parameters and buffers of its objectives; after
        `to`. A run that goes on from a checkpoint has it from there."""

    def check(self, batch: Batch) -> None:
        """Raise `UserError` for a batch that cannot be used; it is still on the CPU, where looking costs nothing."""

    def prepare(self, batch: Batch) -> Batch:
        """Run frozen models and augmentation on a batch that is already on the device, without gradient."""
        return batch

    def on_step_end(self, step: int, total_steps: int) -> None:
        """Called after every optimiser step, `step` counting from 1 (momentum updates, schedules, revival)."""

    def evaluate(self, seed: int) -> dict[str, float]:
        """Figures worth watching, with EMA weights in place; main process only. Scalars, no NaN."""
        return {}

    def preview(self, seed: int) -> Image.Image | None:
        """A picture of where training stands, with EMA weights in place; main process only."""
        return None

    def distributions(self, seed: int) -> dict[str, torch.Tensor]:
        """Numbers of which a histogram is worth seeing, by name, with EMA weights in place; main process only.

        Asked for with each evaluation, where there is a tracker to show them.
        """
        return {}

    def parts_matter(self, world: int) -> str | None:
        """What depends on how a batch is shared out among `world` processes, beyond the last bits: a clause to tell people,
        None for nothing."""
        return None

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the finished component(s) into `folder` (config.json + safetensors), EMA weights in place."""

    def identity(self) -> dict[str, Any]:
        """JSON that a resumed run must match: the model's config, hashes of frozen models. The loop adds the data's."""
        return {}


class Frozen:
    """Holds a frozen module without registering it, so that it is neither trained, averaged nor checkpointed."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)
