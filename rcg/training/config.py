"""How to train: the flags that every `rcg-train-…` command shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from rcg.core.errors import UserError
from rcg.core.parts import restarted
from rcg.core.schema import (
    PICTURES,
    Count,
    NonNegative,
    OutFolder,
    Positive,
    Range,
    Seed,
    Share,
    ShareBelowOne,
    Size,
    read_json,
)

OptimizerName = Literal["adamw", "muon"]
JOB = "job.json"
OF_A_RUN = frozenset({JOB, "config.yaml", "log.jsonl", "checkpoints"})
"""By which a folder `training` is known to be a run's, to be gone on with or replaced."""
OF_OTHERS = ("manifest.json", "model_index.json", "sampling.json")
"""Of a cache, a pipeline, drawn images."""
"""Under this name a run says which job of torchrun or SLURM computes it (`rcg.core.parts.job`)."""


@dataclass
class TrainingConfig:
    """The training loop. One definition of every word, in all commands."""

    out: OutFolder
    """Folder of the run; the finished stage is loadable from here."""
    steps: Count | None = None
    """Optimiser steps in all; wins over --epochs."""
    epochs: Positive | None = None
    """Passes over the data in all."""
    batch_size: Size = 256
    """Samples in one optimiser step, over all processes and accumulation together."""
    micro_batch_size: Size | None = None
    """Most samples in one forward pass of one process; smaller than the batch means gradient accumulation. (MAGE draws a
    share of masked tokens for each pass.)"""
    lr: Annotated[float, Range(0, 1e6, "(]")] | None = None
    """Peak learning rate; wins over --base-lr."""
    base_lr: Annotated[float, Range(0, 1e6, "(]")] | None = None
    """Peak learning rate per 256 samples: lr = base_lr x batch_size / 256."""
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """What follows the warm-up: stay, or a half cosine to --min-lr-ratio."""
    min_lr_ratio: Share = 0.0
    """Where the cosine of the learning rate leads to, as a share of the peak."""
    warmup: NonNegative = 0.0
    """Linear warm-up: a share of the run if below 1, otherwise a number of steps."""
    optimizer: OptimizerName = "adamw"
    """What moves the weights: AdamW, or Muon for the linear layers and convolutions inside blocks and AdamW for the rest. Muon
    needs about half as many steps in transformers trained from nothing."""
    weight_decay: Annotated[float, Range(0, 1e6)] = 0.05
    """Decoupled weight decay."""
    weight_decay_end: Annotated[float, Range(0, 1e6)] | None = None
    """Weight decay at the end, reached in half a cosine (default: it stays)."""
    beta1: ShareBelowOne = 0.9
    """AdamW beta 1."""
    beta2: ShareBelowOne = 0.95
    """AdamW beta 2."""
    clip_grad: Positive | None = None
    """Clip the gradient's global norm to this."""
    ema_decay: ShareBelowOne = 0.9999
    """Decay of the weights' moving average, warmed up as min(decay, (1+n)/(10+n)); only stages that keep one use it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; auto is bf16 where the hardware has it (CUDA, CPUs with AMX or AVX512-BF16)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA when there is one."""
    compile: bool = False
    """torch.compile the objectives."""
    num_workers: Annotated[int, Range(0, 256)] = 0
    """Processes that read data beside the training process. A run that waits for its data says how many would help."""
    seed: Seed = 0
    """Seed of weights, order, augmentation and noise."""
    save_every: Count = 1000
    """Steps between checkpoints (one is always written at the end)."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints to keep."""
    log_every: Count = 20
    """Steps between lines of the log."""
    eval_every: Count | None = None
    """Steps between evaluations (default: ten in a run)."""
    preview_every: Count | None = None
    """Steps between sample pictures (default: with each evaluation)."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where to show figures, pictures and histograms beside the log file; needs the extra of that name."""
    resume: bool = False
    """Go on from the newest checkpoint in --out. Implied where torchrun (--max-restarts) or SLURM (--requeue) starts the command
    again that began the run."""
    overwrite: bool = False
    """Throw away the run that --out already holds, and its model: until the new one is done, none can be loaded from there."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used; a command that was started again resumes its run."""
        if self.steps is None and self.epochs is None:
            raise UserError("the length of the run is not given; add --steps or --epochs.")
        if self.lr is None and self.base_lr is None:
            raise UserError("the learning rate is not given; add --lr or --base-lr.")
        if self.lr_schedule == "constant" and self.min_lr_ratio:
            raise UserError(
                f"--min-lr-ratio {self.min_lr_ratio:g} has no effect with --lr-schedule constant; set it to 0, or take cosine."
            )
        if self.weight_decay_end is not None and not self.weight_decay:
            raise UserError(
                f"a --weight-decay of 0 cannot grow to --weight-decay-end {self.weight_decay_end:g}; give one above 0, or None "
                "for the end."
            )
        if (began := self.out / "training" / JOB).is_file() and restarted(read_json(began, dict[str, str])):
            self.resume, self.overwrite = True, False
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
        found = {p.name for p in run.iterdir() if not p.name.startswith(".")} if run.is_dir() else set()
        if found and not found & OF_A_RUN:
            raise UserError(
                f"--out {self.out} has a folder {run.name} that no run made ({min(found)}), and runs keep their checkpoints there; "
                "choose another --out."
            )
        occupied = run.exists() or (self.out / "config.json").exists()
        others = [] if occupied or not self.out.is_dir() else [p.name for p in self.out.iterdir()]
        if strange := [n for n in others if n in OF_OTHERS or n.lower().endswith(PICTURES)]:
            raise UserError(f"--out {self.out} holds other things ({min(strange)}); choose another folder.")
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
