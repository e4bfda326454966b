"""What is otherwise for a run that goes on: refused where it would be another run, told where it only computes otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import nn

from rcg.core.errors import UserError
from rcg.core.schema import flag_of, parse_yaml
from rcg.training.checkpoints import Meta
from rcg.training.config import TrainingConfig
from rcg.training.stage import Stage

IDENTITY_BEFORE: dict[str, Any] = {
    "optimizer": "adamw",
    "model": {"norm_groups": 32, "prediction_type": "epsilon"},
    "tokenizer": {"flow_decoder": None},
}
"""What checkpoints were made with that do not say so yet."""
MAY_CHANGE = ("lr", "base_lr", "lr_schedule", "min_lr_ratio", "warmup", "weight_decay", "weight_decay_end", "beta1", "beta2",
              "clip_grad", "ema_decay")  # fmt: skip
"""Flags that somebody may want otherwise from a step on, but not by accident."""
FOLLOWS = ("encodings",)
"""From the rest; for `rcg.data.provenance`, and not in checkpoints of older versions."""


class Division(NamedTuple):
    """How a batch is divided: processes, and the forward passes that each makes of its share."""

    world: int
    passes: int

    @classmethod
    def of(cls, meta: Meta) -> Division:
        """Of the run that wrote a checkpoint."""
        world = meta["world"]
        return cls(world, max(1, meta.get("groups", world) // world))


def check_identity(meta: Meta, identity: dict[str, Any], out: Path, flags: Mapping[str, Any] | None = None) -> None:
    """Raise `UserError` if a run of this identity is not the one in `out` that wrote the checkpoint.

    Args:
        meta: of the checkpoint.
        identity: of the run that would go on.
        out: its folder, whose record has the flags that it was begun with.
        flags: of now, by which the sentence names what differs; what these do not explain has its name in the identity.
    """
    held: dict[str, Any] = {}
    now: dict[str, Any] = {}
    for key, value in identity.items():
        if key in FOLLOWS:
            continue
        before = IDENTITY_BEFORE.get(key)
        was = meta["identity"].get(key, before)
        if isinstance(before, dict) and isinstance(was, dict) and isinstance(value, dict):
            was = {k: v for k, v in before.items() if k in value} | was
        if was != value:
            held |= _leaves(key, was)
            now |= _leaves(key, value)
    if held == now:
        return
    begun, given = _recorded(out), _as_recorded(flags or {})
    free = {f.name for f in fields(TrainingConfig)} - identity.keys() | {"rcg_version"}
    asked = {k: (begun[k], v) for k, v in given.items() if k in begun and k not in free and begun[k] != v}
    changed = {flag_of(k): values for k, values in asked.items()}
    for name in held | now:
        alone = name in identity and name not in asked and not isinstance(identity[name], list)
        if held.get(name) != now.get(name) and (alone or not asked):
            changed[name] = held.get(name), now.get(name)
    told = ", ".join(f"{name} {was!s:.40} → {is_now!s:.40}" for name, (was, is_now) in changed.items())
    raise UserError(
        f"--resume: the run in {out} was begun with other settings ({told}); give what it was started with, or another --out."
    )


def say_changed(out: Path, flags: Mapping[str, Any]) -> str | None:
    """Which of `MAY_CHANGE` are now otherwise than when the run in `out` was last begun, in words; None for none."""
    before, now = _recorded(out), _as_recorded(flags)
    changed = [name for name in MAY_CHANGE if name in before and name in now and before[name] != now[name]]
    told = ", ".join(f"{flag_of(name)} {now[name]}, not {before[name]}" for name in changed)
    return f"The run goes on with {told}." if told else None


def _recorded(out: Path) -> dict[str, Any]:
    """The flags that the run in a folder was last begun with, as far as they are known."""
    record = out / "training" / "config.yaml"
    begun = parse_yaml(record.read_bytes(), str(record), "remove it") if record.is_file() else {}
    return begun if isinstance(begun, dict) else {}


def _as_recorded(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags as they would be read from a record."""
    given: dict[str, Any] = parse_yaml(yaml.safe_dump(dict(flags), sort_keys=False).encode(), "these settings")
    return given


def _leaves(name: str, value: Any) -> dict[str, Any]:
    """The values within nested settings, by their dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, within in value.items() for k, v in _leaves(f"{name}.{key}", within).items()}


def say_division(stage: Stage, batch_size: int, before: Division, now: Division, draws_apart: bool) -> str | None:
    """What another division of the batch means for a run, in words; None for nothing.

    Args:
        stage: that is trained.
        batch_size: of all processes.
        before, now: the divisions.
        draws_apart: whether dropout draws its numbers for each process, see `rcg.core.draws.random_words`.
    """
    compared = say_compared(batch_size, before, now) if stage.compares else None
    if before.world == now.world:
        return f"Other micro-batches than before: {compared}." if compared else None
    matters = [clause] if (clause := stage.parts_matter(now.world)) else []
    modules = [m for objective in stage.objectives.values() for m in objective.modules()]
    if draws_apart and any(isinstance(m, nn.Dropout) and m.p > 0 for m in modules):
        matters.append("what dropout leaves out on a GPU or with --compile is drawn for each process")
    matters += [compared] if compared else []
    processes = "1 process" if before.world == 1 else f"{before.world} processes"
    return (
        f"The run was computed by {processes} until now and goes on with {now.world}: the same batches, views and noise "
        f"in the same order; last bits of sums may differ{''.join(f', and {m}' for m in matters)}."
    )


def say_compared(batch_size: int, before: Division, now: Division) -> str | None:
    """What a loss that compares samples finds changed: a clause, None for nothing."""
    if before == now or before.passes == now.passes == 1:
        return None
    if before.passes == now.passes:
        return f"a loss that compares samples finds others among the {batch_size // now.passes} of a micro-batch"
    return (
        f"a loss that compares samples compares {batch_size // now.passes} at a time, not {batch_size // before.passes} "
        f"(--micro-batch-size {-(-batch_size // (now.world * before.passes))} makes as many)"
    )
