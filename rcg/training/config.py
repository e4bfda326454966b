"""How to train: the flags that every `rcg-train-…` command shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rcg.core.errors import UserError


@dataclass
class TrainingConfig:
    """The training loop. One definition of every word, in all commands."""

    out: Path
    """Folder of the run; the finished stage is loadable from here."""
    steps: int | None = None
    """Optimiser steps in all; wins over --epochs."""
    epochs: float | None = None
    """Passes over the data in all."""
    batch_size: int = 256
    """Samples in one optimiser step, over all processes and accumulation together."""
    micro_batch_size: int | None = None
    """Most samples in one forward pass of one process; smaller than the batch means gradient accumulation."""
    lr: float | None = None
    """Peak learning rate; wins over --base-lr."""
    base_lr: float | None = None
    """Peak learning rate per 256 samples: lr = base_lr x batch_size / 256."""
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """What follows the warm-up: stay, or a half cosine to --min-lr-ratio."""
    min_lr_ratio: float = 0.0
    """Last learning rate of the cosine as a share of the peak."""
    warmup: float = 0.0
    """Linear warm-up: a share of the run if below 1, otherwise a number of steps."""
    weight_decay: float = 0.05
    """AdamW's decoupled weight decay."""
    beta1: float = 0.9
    """AdamW beta 1."""
    beta2: float = 0.95
    """AdamW beta 2."""
    clip_grad: float | None = None
    """Clip the gradient's global norm to this."""
    ema_decay: float = 0.9999
    """Decay of the weights' moving average, warmed up as min(decay, (1+n)/(10+n)); only stages that keep one use it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; auto is bf16 where the hardware has it (CUDA, CPUs with AMX or AVX512-BF16)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA when there is one."""
    compile: bool = False
    """torch.compile the objectives."""
    num_workers: int = 0
    """Processes that read data beside the training process."""
    seed: int = 0
    """Seed of weights, order, augmentation and noise."""
    save_every: int = 1000
    """Steps between checkpoints (one is always written at the end)."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep."""
    log_every: int = 20
    """Steps between lines of the log."""
    eval_every: int | None = None
    """Steps between evaluations (default: ten in a run)."""
    preview_every: int | None = None
    """Steps between sample pictures (default: with each evaluation)."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where to send figures beside the log file."""
    resume: bool = False
    """Go on from the newest checkpoint in --out."""
    overwrite: bool = False
    """Throw away the run that --out already holds."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if self.steps is None and self.epochs is None:
            raise UserError("the length of the run is not given; add --steps or --epochs.")
        if self.lr is None and self.base_lr is None:
            raise UserError("the learning rate is not given; add --lr or --base-lr.")
        positive = ("steps", "epochs", "batch_size", "micro_batch_size", "lr", "base_lr", "clip_grad", "save_every",
                    "keep_checkpoints", "log_every", "eval_every", "preview_every")  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"--{name.replace('_', '-')} is {value}, but it must be above 0.")
        for name in ("num_workers", "seed", "warmup", "weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}, but it may not be negative.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema-decay is {self.ema_decay}, but it must lie in [0, 1).")
        self._check_out()

    def _check_out(self) -> None:
        """Refuse an output folder that holds something else, or nothing to go on with."""
        run = self.out / "training"
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite exclude each other; choose one.")
        if self.resume and not run.is_dir():
            raise UserError(
                f"--resume: {self.out} holds no run to go on with; check --out, or leave --resume out to start one."
            )
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; give a folder.")
        occupied = run.exists() or (self.out / "config.json").exists()
        if occupied and not self.resume and not self.overwrite:
            raise UserError(
                f"--out {self.out} already holds a run; add --resume to go on, --overwrite to replace it, or choose another."
            )

    @property
    def peak_lr(self) -> float:
        """The peak learning rate, whichever way it was given."""
        if self.lr is not None:
            return self.lr
        assert self.base_lr is not None
        return self.base_lr * self.batch_size / 256

    def total_steps(self, samples: int) -> int:
        """Optimiser steps of the whole run over a set of `samples`."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * samples / self.batch_size))
