"""Reading foreign weight files safely and loading them with every key accounted for. A leaf: anyone may import it."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rcg.errors import UserError

CONTAINERS = ("state_dict", "model", "teacher")  # where a training checkpoint may keep its weights


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a torch or safetensors file, on the CPU, without running any code it may hold.

    `argparse.Namespace`, which the published files hold under `args`, is the one class allowed beside tensors.

    Raises:
        UserError: no such file, a truncated file, a file of another kind, or one that holds other classes.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the path of a checkpoint.")
    try:
        if path.suffix == ".safetensors":
            contents: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                contents = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as e:  # torch and safetensors raise a dozen kinds for a broken file, OSError among them
        raise UserError(
            f"{path} cannot be read as a checkpoint; it is truncated, of another kind or holds code. Fetch it again."
        ) from e
    if not isinstance(contents, Mapping):
        raise UserError(
            f"{path} holds a {type(contents).__name__} and not a checkpoint's dictionary; give another file."
        )
    return dict(contents)


def tensors_of(contents: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among a mapping's values."""
    return {str(k): v for k, v in contents.items() if isinstance(v, Tensor)}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: bare, or inside a training checkpoint.

    Raises:
        UserError: see `read_checkpoint`; or no weights in it.
    """
    contents = read_checkpoint(path)
    for name in CONTAINERS:
        if isinstance(contents.get(name), Mapping):
            contents = contents[name]
            break
    state = tensors_of(contents)
    if not state:
        raise UserError(f"{path} holds no weights; give a file with a state dict.")
    return state


def weights_under(contents: Mapping[str, Any], names: Sequence[str], what: str) -> dict[str, Tensor]:
    """The state dict that a checkpoint holds under the first of `names` that it has.

    Raises:
        UserError: none of them, or other things than tensors in it; `what` says in a message what was looked for.
    """
    weights = next((contents[name] for name in names if name in contents), None)
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        places = " or ".join(f"`{name}`" for name in names)
        raise UserError(f"{what}: there are no weights under {places}; give another file.")
    return {str(k): v for k, v in weights.items()}


def nearest(key: str, others: Iterable[str]) -> str:
    """` (nearest: …)`, or nothing when no other key is alike."""
    near = difflib.get_close_matches(key, list(others), n=1, cutoff=0.5)
    return f" (nearest: {near[0]})" if near else ""


def some(keys: Iterable[str]) -> str:
    """The first three keys and how many more there are."""
    names = sorted(keys)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict of which every key and shape must fit.

    Args:
        module: the module to fill; untouched if anything does not fit.
        state: names and tensors.
        source: what to call the state in an error.

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
    module.load_state_dict(dict(state))
