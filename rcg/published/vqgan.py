"""Official tokenizer checkpoints (the MaskGIT VQGAN ported to PyTorch by MAGE) -> `VQTokenizer`, every key accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.state_dicts import (
    Conversion,
    build_filled,
    nearest,
    numbered,
    weights_under,
    widened,
    without_wrapper,
)
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer

NORM_GROUPS = 32  # of the official network; no tensor's shape tells
MAGE_PREFIX = "vqgan."  # under which the official MAGE files hold their tokenizer


def convert_vqgan(contents: Mapping[str, Any], source: str) -> Conversion[VQTokenizer]:
    """Read the tokenizer out of an official `vqgan_jax_strongaug.ckpt`, or out of a MAGE file.

    Args:
        contents: what `rcg.core.state_dicts.read_checkpoint` gave: weights under `state_dict`, `model` or nothing, or
            `vqgan.*` among them.
        source: what a message calls the file.

    Returns:
        The tokenizer in eval mode (fp32), its sizes inferred from the tensors; and what became of each key.

    Raises:
        UserError: no tokenizer in the file, or a key missing, unexpected or of another shape than its fellows.
    """
    what = f"{source} holds no tokenizer; give an official VQGAN or MAGE checkpoint"
    state, wrapper = without_wrapper(weights_under(contents, ["state_dict", "model"], what, bare=True))
    dropped: dict[str, str] = {}
    if any(k.startswith(MAGE_PREFIX) for k in state):
        dropped = {wrapper + k: "no part of the tokenizer" for k in state if not k.startswith(MAGE_PREFIX)}
        wrapper += MAGE_PREFIX
        state = {k.removeprefix(MAGE_PREFIX): v for k, v in state.items() if k.startswith(MAGE_PREFIX)}
    if not any(k.startswith(("encoder.", "decoder.", "quantize.")) for k in state):
        raise UserError(f"{what}.")
    notes: list[str] = []
    config = _config(state, source)
    model = build_filled(lambda: VQTokenizer(**config), widened(state, notes), f"the tokenizer in {source}")
    return Conversion(model, "vqgan", {wrapper + k: k for k in state}, dropped, notes)


def _config(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Arguments of `VQTokenizer`, read off the tensors' shapes."""
    try:
        base, in_channels = state["encoder.conv_in.weight"].shape[:2]
        num_codes, code_dim = state["quantize.embedding.weight"].shape
        levels = numbered(state, r"encoder\.down\.(\d+)\.")
        widths = [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    except (KeyError, ValueError) as e:
        near = nearest(str(e.args[0]), state)
        raise UserError(
            f"{source} holds no VQGAN tokenizer ({e.args[0]} is missing{near}); give an official file."
        ) from None
    if not widths or any(width % base for width in widths):
        raise UserError(f"{source} has levels of {widths} channels, not multiples of its first layer's {base}.")
    return {
        "in_channels": in_channels,
        "base_channels": base,
        "channel_multipliers": tuple(width // base for width in widths),
        "num_res_blocks": numbered(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "num_codes": num_codes,
        "code_dim": code_dim,
        "norm_groups": NORM_GROUPS,
    }
