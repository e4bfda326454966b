"""Figures, pictures and histograms for TensorBoard or W&B, through accelerate's trackers."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from rcg.core.errors import UserError
from rcg.core.files import atomic_file

BINS = 64
MOST_WEIGHTS = 48
"""Weights of an objective whose histograms are shown: spread evenly over its depth."""
RUN_ID = "wandb_id.txt"
"""Beside the log: which W&B run a resumed training goes on with."""


def check_tracker(name: str) -> None:
    """Refuse a tracker whose package is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--tracker {name} needs a package that is missing; run: pip install {name}.")


class Tracker:
    """Where figures go beside the log file; does nothing where there is no tracker.

    A resumed run goes on in the same W&B run, and takes back what TensorBoard was told after its checkpoint.

    Args:
        accelerator: made with `log_with`.
        name: `none`, `tensorboard` or `wandb`.
        folder: of the run's own files.
        settings: shown as hyper-parameters.
        start: step that the run goes on from.

    Attributes:
        active: whether this process shows anything anywhere.
    """

    def __init__(
        self, accelerator: Accelerator, name: str, folder: Path, settings: Mapping[str, Any], start: int
    ) -> None:
        self.accelerator, self.name = accelerator, name
        self.active = name != "none" and accelerator.is_main_process
        if name == "none":
            return
        options: dict[str, Any] = {}
        if name == "tensorboard":
            options = {"purge_step": start + 1}
        elif accelerator.is_main_process:
            options = {"id": _run_id(folder, start == 0), "resume": "allow", "dir": str(folder)}
        accelerator.init_trackers(
            "tensorboard" if name == "tensorboard" else "rcg", _scalars(settings), init_kwargs={name: options}
        )
        if accelerator.is_main_process and not accelerator.trackers:
            raise UserError(
                f"--tracker {name} cannot be used: accelerate finds no working {name} (is it switched off by the "
                "environment?); install it anew, or leave --tracker out."
            )

    def figures(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name."""
        if self.active:
            self.accelerator.log(dict(values), step=step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        """A picture."""
        if self.active:
            pixels = np.asarray(image.convert("RGB"))
            shown = pixels[None].transpose(0, 3, 1, 2) if self.name == "tensorboard" else pixels[None]
            for tracker in self.accelerator.trackers:
                tracker.log_images({name: shown}, step=step)

    def histograms(self, values: Mapping[str, torch.Tensor], step: int) -> None:
        """How numbers are distributed: tensors of any shape; only counts leave the device."""
        if not self.active:
            return
        counted = {name: _count(value) for name, value in values.items()}
        for tracker in self.accelerator.trackers:
            for name, found in counted.items():
                if found is None:
                    continue
                if self.name == "tensorboard":
                    counts, edges, moments = found
                    tracker.writer.add_histogram_raw(
                        name, edges[0], edges[-1], counts.sum(), *moments, edges[1:].tolist(), counts.tolist(), step
                    )
                else:
                    import wandb

                    tracker.log({name: wandb.Histogram(np_histogram=found[:2])}, step=step)

    def close(self) -> None:
        """Write what is held back; a run that was stopped, too, leaves all of it."""
        if self.active:
            self.active = False
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers = []


def weights_of(objectives: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """The matrices of all objectives by name, at most `MOST_WEIGHTS` of each."""
    found: dict[str, torch.Tensor] = {}
    for name, objective in objectives.items():
        matrices = [(k, p.detach()) for k, p in objective.named_parameters() if p.ndim >= 2 and p.numel()]
        count = min(MOST_WEIGHTS, len(matrices))
        for i in sorted({round(j * (len(matrices) - 1) / max(1, count - 1)) for j in range(count)}):
            found[f"weights/{name}/{matrices[i][0]}"] = matrices[i][1]
    return found


def _count(value: torch.Tensor) -> tuple[np.ndarray, np.ndarray, tuple[float, float]] | None:
    """Counts int64 [BINS], edges float64 [BINS + 1], and sum and sum of squares; None where nothing is finite."""
    flat = value.detach().flatten().float()
    flat = flat[flat.isfinite()]
    if not len(flat):
        return None
    low, high = (float(v) for v in torch.stack([flat.min(), flat.max()]).tolist())
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(flat, BINS, low, high).cpu().numpy().astype(np.int64)
    moments = float(flat.double().sum()), float(flat.double().square().sum())
    return counts, np.linspace(low, high, BINS + 1), moments


def _run_id(folder: Path, new: bool) -> str:
    file = folder / RUN_ID
    if new or not file.is_file():
        with atomic_file(file) as temporary:
            temporary.write_text(uuid.uuid4().hex[:12] + "\n")
    return file.read_text().strip()


def _scalars(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a tracker can show as hyper-parameters."""
    return {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in settings.items()}
