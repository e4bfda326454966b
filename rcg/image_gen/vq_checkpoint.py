"""Official tokenizer checkpoints (the MaskGIT VQGAN ported to PyTorch by MAGE) -> `VQTokenizer`, every key accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcg.errors import UserError
from rcg.foreign import read_checkpoint, some, weights_under
from rcg.image_gen.vq_tokenizer import VQTokenizer

NORM_GROUPS = 32  # of the official network; no tensor's shape tells
MAGE_PREFIX = "vqgan."  # under which the official MAGE files hold their tokenizer


def load_vqgan_checkpoint(path: str | Path) -> VQTokenizer:
    """Read the tokenizer out of an official `vqgan_jax_strongaug.ckpt`, or out of a MAGE file. Nothing in it is executed.

    Args:
        path: a file with the weights under `state_dict`, or with `vqgan.*` among the weights under `model`.

    Returns:
        The tokenizer in eval mode (fp32), its sizes inferred from the tensors.

    Raises:
        UserError: no such file, no tokenizer in it, or a key missing, unexpected or of another shape than its fellows.
    """
    contents = read_checkpoint(Path(path))
    weights: Any = contents.get("state_dict")
    if weights is None and isinstance(contents.get("model"), Mapping):
        model = contents["model"]
        weights = {k.removeprefix(MAGE_PREFIX): v for k, v in model.items() if k.startswith(MAGE_PREFIX)}
    what = f"{path} holds no tokenizer; give an official VQGAN or MAGE checkpoint"
    return tokenizer_from_state(weights_under({"state_dict": weights}, ["state_dict"], what), str(path))


def tokenizer_from_state(state: Mapping[str, Tensor], source: str) -> VQTokenizer:
    """Build the tokenizer that fits official weights, and load them.

    Args:
        state: official names (`encoder.…`, `decoder.…`, `quantize.embedding.weight`) -> tensors.
        source: what to call the weights in an error.

    Raises:
        UserError: as in `load_vqgan_checkpoint`.
    """
    with torch.device("meta"):
        expected = VQTokenizer(**_config(state, source)).state_dict()
    if missing := expected.keys() - state.keys():
        raise UserError(f"{source} lacks {some(missing)} of the tokenizer; take the whole file.")
    if unexpected := state.keys() - expected.keys():
        raise UserError(f"{source} holds {some(unexpected)}, no part of the tokenizer; take an official VQGAN file.")
    if differing := {k for k, v in state.items() if v.shape != expected[k].shape}:
        raise UserError(
            f"{source}: {some(differing)} does not fit the sizes of the other tensors; fetch the file again."
        )
    model = VQTokenizer(**_config(state, source))
    model.load_state_dict({k: v.float() for k, v in state.items()})
    return model.eval()


def _config(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Arguments of `VQTokenizer`, read off the tensors' shapes."""
    try:
        base, in_channels = state["encoder.conv_in.weight"].shape[:2]
        num_codes, code_dim = state["quantize.embedding.weight"].shape
        levels = _count(state, r"encoder\.down\.(\d+)\.")
        widths = [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    except (KeyError, ValueError) as e:
        raise UserError(f"{source} holds no VQGAN tokenizer ({e.args[0]} is missing); give an official file.") from None
    if not widths or any(width % base for width in widths):
        raise UserError(f"{source} has levels of {widths} channels, not multiples of its first layer's {base}.")
    return {
        "in_channels": in_channels,
        "base_channels": base,
        "channel_multipliers": tuple(width // base for width in widths),
        "num_res_blocks": _count(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "num_codes": num_codes,
        "code_dim": code_dim,
        "norm_groups": NORM_GROUPS,
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    found = [re.match(pattern, key) for key in state]
    return 1 + max((int(match[1]) for match in found if match), default=-1)
