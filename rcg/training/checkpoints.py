"""Checkpoints of a run: one folder a step, whole or absent, safetensors and JSON only."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rcg.core.errors import UserError
from rcg.core.files import atomic_folder, remove_folder, write_json
from rcg.core.schema import Count, CountOrZero, NonNegative, read_json
from rcg.training.optimizers import ObjectiveOptimizer
from rcg.training.shards import cut, own

State = dict[str, torch.Tensor]


class OpenAverages(TypedDict):
    """The figures that the log is averaging over (see `Averages`): steps, and the sum of each process."""

    counts: dict[str, CountOrZero]
    sums: dict[str, list[float] | float]


class _Always(TypedDict):
    format: Literal[1]
    rcg_version: str
    identity: dict[str, Any]
    total_steps: Count
    world: Count
    bf16: bool
    ema_updates: CountOrZero
    log: OpenAverages


class Meta(_Always, total=False):
    """`meta.json` of a checkpoint.

    Attributes:
        format: of checkpoints.
        rcg_version: that wrote it.
        identity: settings that a resumed run must share.
        total_steps: planned.
        world: processes.
        bf16: whether the forward pass computed in it.
        ema_updates: of the averaged weights so far.
        log: averages since the last line of the log.
        groups: parts of a batch that were computed together when the run began; not in checkpoints of older versions.
        warmup: `--warmup` as it was given, and the steps that the run took it for; neither in those.
    """

    groups: Count
    warmup: list[NonNegative]


STATE = "state.safetensors"
"""In the folder of a checkpoint: every tensor of the run."""


def run_of(folder: Path) -> Path | None:
    """The folder (`--out`) of the run that a folder is a checkpoint of; None if it is none."""
    folder = folder.absolute()
    return folder.parents[2] if (folder / STATE).is_file() and folder.parent.name == "checkpoints" else None


def named_state(
    objectives: dict[str, nn.Module], optimizers: dict[str, ObjectiveOptimizer]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the objectives (`model.…`) and of their optimisers (`optimizer.…`), by name; cut up as they are."""
    for name, objective in objectives.items():
        for key, value in objective.state_dict().items():
            yield f"model.{name}.{key}", value
        names = {id(p): k for k, p in objective.named_parameters()}
        for parameter, values in optimizers[name].state.items():
            for key, value in values.items():
                yield f"optimizer.{name}.{names[id(parameter)]}.{key}", torch.as_tensor(value)


def restore_state(state: State, objectives: dict[str, nn.Module], optimizers: dict[str, ObjectiveOptimizer]) -> None:
    """Put back what `named_state` gave, as whole tensors; every key must find its place.

    Of tensors that are cut up among processes, each takes its own rows.

    Raises:
        UserError: the checkpoint belongs to another model.
    """
    remembered: dict[str, State] = defaultdict(dict)
    for key, value in state.items():
        where, _, what = key.rpartition(".")
        remembered[where][what] = value
    for name, objective in objectives.items():
        prefix = f"model.{name}."
        likes = objective.state_dict()
        weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        weights = {k: cut(v, likes[k]) if k in likes else v for k, v in weights.items()}
        try:
            objective.load_state_dict(weights, strict=True)
        except RuntimeError as e:
            raise UserError(
                f"the checkpoint does not fit the {name} model ({str(e).splitlines()[1].strip()[:160]}); resume with the "
                "flags the run was started with."
            ) from None
        optimizer = optimizers[name]
        for key, p in objective.named_parameters():
            if values := remembered.get(f"optimizer.{name}.{key}"):
                device = own(p).device  # where fused AdamW wants the number of steps, too
                optimizer.remember(
                    p,
                    {
                        k: v.to(device, copy=True) if k == "step" else torch.empty_like(p).copy_(cut(v, p))
                        for k, v in values.items()
                    },
                )


class CheckpointFolder:
    """The checkpoints of one run, newest last.

    Args:
        folder: `OUT/training/checkpoints`.
        keep: how many to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        found = ((re.fullmatch(r"step-(\d{8,})", p.name), p) for p in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match, p in found if match and (p / "meta.json").is_file())

    def save(self, step: int, state: State, meta: Meta) -> Path:
        """Write the checkpoint of `step` atomically, then remove the oldest beyond `keep`.

        Raises:
            UserError: a tensor is not finite; the older checkpoints stay.
        """
        bad = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
        if bad:
            raise UserError(
                f"{bad[0]} is not finite at step {step}, so no checkpoint was written and the older ones stay; "
                "lower --lr or use --precision fp32, then --resume."
            )
        target = self.folder / f"step-{step:08d}"
        with atomic_folder(target) as temporary:
            save_file(_apart(state), temporary / STATE)
            write_json(temporary / "meta.json", meta)
        for old in self.steps()[: -self.keep]:
            remove_folder(self.folder / f"step-{old:08d}")
        return target

    def load_newest(self) -> tuple[int, State, Meta] | None:
        """The newest complete checkpoint as (step, state, meta), or None when there is none yet."""
        steps = self.steps()
        if not steps:
            return None
        folder = self.folder / f"step-{steps[-1]:08d}"
        again = f"delete {folder} to go on from the checkpoint before it"
        meta: Meta = read_json(folder / "meta.json", Meta, again)
        try:
            return steps[-1], load_file(folder / STATE), meta
        except (SafetensorError, FileNotFoundError) as e:
            raise UserError(f"{folder / STATE} is damaged ({e}); {again}.") from None


def _apart(state: State) -> State:
    """On the CPU, contiguous, each in memory of its own, as safetensors wants it; what is so already is not copied."""
    found: State = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        here = tensor.detach().cpu().contiguous()
        storage = here.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != here.nbytes:
            here = here.clone()
        seen.add(here.untyped_storage().data_ptr())
        found[name] = here
    return found
