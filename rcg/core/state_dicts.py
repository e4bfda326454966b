"""Reading foreign weight files safely and loading them with every key accounted for. A leaf: anyone may import it."""

from __future__ import annotations

import argparse
import difflib
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file
from torch import Tensor, nn

from rcg.core.component import settle_weights
from rcg.core.errors import UserError

Model = TypeVar("Model", bound=nn.Module)
CONTAINERS = ("state_dict", "model", "teacher")  # where a training checkpoint may keep its weights
DDP_PREFIX = "module."
UNSUPPORTED = re.compile(r"GLOBAL ([\w.]+)|allowed (?:class|function):? ([\w.]+)")


@dataclass
class Conversion(Generic[Model]):
    """A model read from a published file, and what became of each of the file's keys."""

    model: Model
    kind: str
    """What the file is: a name in `rcg.published.convert.KINDS`."""
    loaded: dict[str, str] = field(default_factory=dict)
    """Key in the file → name in the model."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Key in the file → why it was left out."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what a user should know of this file (half precision, a wrapper's prefix, …)."""

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(p.numel() for p in self.model.parameters())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a torch or safetensors file, on the CPU, without running any code it may hold.

    The tensors are memory-mapped where the file allows it, so that those nobody touches cost no memory.
    `argparse.Namespace`, which the published files hold under `args`, is the one class allowed beside tensors.

    Raises:
        UserError: no such file, a truncated file, a file of another kind, or one that holds other classes.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of a checkpoint file.")
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the path of a checkpoint.")
    try:
        contents = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except PermissionError:
        raise
    except Exception as e:  # torch and safetensors raise a dozen kinds for a broken file, OSError among them
        if isinstance(e, pickle.UnpicklingError) and (found := UNSUPPORTED.search(str(e))):
            raise UserError(
                f"{path} cannot be read as a checkpoint: it holds code (a {found[1] or found[2]}) that loading would have to run, "
                "which is refused; save its tensors alone and give that file."
            ) from e
        raise UserError(
            f"{path} cannot be read as a checkpoint; it is truncated, of another kind or holds code. Fetch it again."
        ) from e
    if not isinstance(contents, Mapping):
        raise UserError(
            f"{path} holds a {type(contents).__name__} and not a checkpoint's dictionary; give another file."
        )
    return dict(contents)


def _load_torch(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on pickle protocols; what matters becomes an error
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as e:
            if "mmap" not in str(e):
                raise
        return torch.load(path, map_location="cpu", weights_only=True)  # written before torch 1.6: cannot be mapped


def tensors_of(contents: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among a mapping's values."""
    return {str(k): v for k, v in contents.items() if isinstance(v, Tensor)}


def tensors_within(contents: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint: those under its usual container, else those at its top level."""
    inner = next((contents[name] for name in CONTAINERS if isinstance(contents.get(name), Mapping)), contents)
    return tensors_of(inner)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: bare, or inside a training checkpoint.

    Raises:
        UserError: see `read_checkpoint`; or no weights in it.
    """
    state = tensors_within(read_checkpoint(path))
    if not state:
        raise UserError(f"{path} holds no weights; give a file with a state dict.")
    return state


def weights_under(
    contents: Mapping[str, Any], names: Sequence[str], what: str, *, bare: bool = False
) -> dict[str, Tensor]:
    """The state dict that a checkpoint holds under the first of `names` that it has.

    Args:
        contents: see `read_checkpoint`.
        names: of containers.
        what: says in a message what was looked for.
        bare: take the tensors at the top level where there is no container.

    Raises:
        UserError: none of them, or other things than tensors in it.
    """
    if bare and not any(name in contents for name in names):
        return tensors_of(contents)
    weights = next((contents[name] for name in names if name in contents), None)
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        places = " or ".join(f"`{name}`" for name in names)
        raise UserError(f"{what}: there are no weights under {places}; give another file.")
    return {str(k): v for k, v in weights.items()}


def without_wrapper(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Take off the `module.` that (one or more) DistributedDataParallel wrappers put before every key.

    Returns:
        The state dict, and the prefix that was taken off ("" mostly).
    """
    prefix = ""
    while state and all(key.startswith(DDP_PREFIX) for key in state):
        state = {key.removeprefix(DDP_PREFIX): value for key, value in state.items()}
        prefix += DDP_PREFIX
    return dict(state), prefix


def widened(state: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Floats as float32, with a sentence in `notes` if any was narrower."""
    narrow = sorted(
        {str(v.dtype).removeprefix("torch.") for v in state.values() if v.is_floating_point()} - {"float32"}
    )
    if narrow:
        notes.append(
            f"the file's weights are {' and '.join(narrow)}; they were converted to float32, so that outputs agree with "
            "the original only to the file's precision."
        )
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def nearest(key: str, others: Iterable[str]) -> str:
    """` (nearest: …)`, or nothing when no other key is alike."""
    near = difflib.get_close_matches(key, list(others), n=1, cutoff=0.5)
    return f" (nearest: {near[0]})" if near else ""


def some(keys: Iterable[str]) -> str:
    """The first three keys and how many more there are."""
    names = sorted(keys)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def numbered(keys: Iterable[str], pattern: str) -> int:
    """How many layers keys name: 1 + the highest number in the group of a pattern that a key begins with; 0 without any."""
    return max((int(match[1]) + 1 for key in keys if (match := re.match(pattern, key))), default=0)


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], source: str, *, assign: bool = False) -> None:
    """Load a state dict of which every key and shape must fit.

    Args:
        module: the module to fill; untouched if anything does not fit.
        state: names and tensors.
        source: what to call the state in an error.
        assign: make the state's tensors the module's own instead of copying their values.

    Raises:
        UserError: the first key that is missing, unknown (with its nearest match) or of another shape.
    """
    own = module.state_dict()
    missing, unknown = [k for k in own if k not in state], [k for k in state if k not in own]
    if missing:
        raise UserError(
            f"{source} lacks {len(missing)} of {len(own)} weights, first {missing[0]}{nearest(missing[0], unknown)}; "
            "it belongs to another architecture or is incomplete."
        )
    if unknown:
        raise UserError(
            f"{source} holds {len(unknown)} weights the model does not have, first {unknown[0]}"
            f"{nearest(unknown[0], list(own))}; it belongs to another architecture."
        )
    for key, tensor in own.items():
        if tensor.shape != state[key].shape:
            raise UserError(
                f"{source}: {key} has shape {list(state[key].shape)} but the model's is {list(tensor.shape)}; "
                "it belongs to another size of the architecture."
            )
    module.load_state_dict(dict(state), assign=assign)


def build_filled(build: Callable[[], Model], state: Mapping[str, Tensor], source: str) -> Model:
    """Build a model around the tensors of a state dict, without a second copy of them in memory.

    Tensors that are mapped from a file stay so where they are aligned (see `settle_weights`): do not overwrite that file
    in place while the model is in use (writing under a temporary name and renaming, as this library does, is safe).

    Args:
        build: makes the model; its parameters are not allocated.
        state: every parameter and saved buffer of it, no more.
        source: what to call the state in an error.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: as in `load_exactly`.
    """
    with init_empty_weights(include_buffers=False):
        model = build()
    load_exactly(model, state, source, assign=True)
    settle_weights(model)
    return model.eval()
