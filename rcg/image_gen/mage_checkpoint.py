"""Official MAGE checkpoints of RCG (LTH14/rcg) → `MageTransformer`, with every key of the file accounted for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rcg.errors import UserError
from rcg.foreign import nearest, read_checkpoint, weights_under
from rcg.image_gen.mage import MageTransformer

KNOWN_HEADS = {768: 12, 1024: 16, 1280: 16}  # B, L, H; the one thing no tensor's shape tells
DECODER_HEADS = 16  # of all three
LEGACY_WORDS = 1001  # the official vocabulary: codes, 1000 classes that were never used, the mask
LEGACY_SLOT = 76  # the slot's id behind the codes: 1100 with 1024 codes

DROPPED = {
    r"vqgan\.": "the tokenizer, a component of its own",
    r"pretrained_encoder\.": "the encoder, a component of its own",
    r"token_emb\.position_ids$": "a constant, 0 … N",
    r"cls_token$|mask_token$|pos_embed$|decoder_pos_embed$|patch_embed\.|decoder_pred\.": "never used by the reference",
}


@dataclass
class MageConversion:
    """A generator read from an official file, and what became of each of the file's keys."""

    model: MageTransformer
    loaded: list[str]
    """Keys that are in the model, under the same name."""
    dropped: dict[str, str]
    """Key in the file → why it was left out."""


def load_mage_checkpoint(
    path: str | Path, *, num_heads: int | None = None, decoder_num_heads: int | None = None
) -> MageConversion:
    """Read the generator out of an official `mage-….pth` file. Nothing in the file is executed.

    Args:
        path: the file; a dict with the weights under `model`.
        num_heads: of the encoder; None takes what the published widths have (768: 12, 1024: 16, 1280: 16).
        decoder_num_heads: of the decoder; None is 16.

    Returns:
        The model in eval mode (fp32), and the keys loaded and dropped. All sizes are inferred from the tensors; a file
        without `latent_prior_proj` gives a model with condition "none".

    Raises:
        UserError: no such file, no MAGE checkpoint, or a key missing, unexpected or of another shape than its fellows.
    """
    path = Path(path)
    weights = weights_under(read_checkpoint(path), ["model"], f"{path} is no official MAGE checkpoint")
    dropped = {k: reason for k in weights for pattern, reason in DROPPED.items() if re.match(pattern, k)}
    live = {k: v for k, v in weights.items() if k not in dropped}
    model = MageTransformer(**_config(live, path, num_heads, decoder_num_heads))
    expected = model.state_dict()
    for missing in sorted(expected.keys() - live.keys()):
        raise UserError(
            f"{path} lacks {missing}{nearest(missing, live.keys() - expected.keys())}; take the whole file."
        )
    for unexpected in sorted(live.keys() - expected.keys()):
        raise UserError(
            f"{path} holds {unexpected}, which is no part of a MAGE generator{nearest(unexpected, expected.keys())}."
        )
    for key, tensor in live.items():
        if tensor.shape != expected[key].shape:
            raise UserError(
                f"{path}: {key} has shape {tuple(tensor.shape)}, but the file's other tensors ask for "
                f"{tuple(expected[key].shape)}; the file is damaged."
            )
    model.load_state_dict(live)
    return MageConversion(model.eval(), sorted(live), dropped)


def _config(
    live: Mapping[str, Tensor], path: Path, num_heads: int | None, decoder_num_heads: int | None
) -> dict[str, Any]:
    """Arguments of `MageTransformer`, read off the tensors' shapes."""
    try:
        vocab_size, width = live["token_emb.word_embeddings.weight"].shape
        num_tokens = live["token_emb.position_embeddings.weight"].shape[0] - 1
        decoder_width = live["decoder_embed.weight"].shape[0]
        hidden = live["blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as e:
        near = nearest(str(e.args[0]), live.keys())
        raise UserError(f"{path} holds no MAGE generator: {e.args[0]} is missing{near}.") from None
    grid_size = math.isqrt(num_tokens)
    if grid_size**2 != num_tokens:
        raise UserError(f"{path} has positions for {num_tokens} tokens, which is not a square grid.")
    if vocab_size <= LEGACY_WORDS:
        raise UserError(
            f"{path} has a vocabulary of {vocab_size} words, but official files have codes + {LEGACY_WORDS}."
        )
    heads = KNOWN_HEADS.get(width) if num_heads is None else num_heads
    if heads is None:
        raise UserError(f"{path} is {width} wide, which is none of the published sizes; give num_heads.")
    num_codes = vocab_size - LEGACY_WORDS
    projection = live.get("latent_prior_proj.weight")
    return {
        "grid_size": grid_size,
        "num_codes": num_codes,
        "vocab_size": vocab_size,
        "slot_token_id": num_codes + LEGACY_SLOT,
        "width": width,
        "depth": _depth(live, "blocks"),
        "num_heads": heads,
        "decoder_width": decoder_width,
        "decoder_depth": _depth(live, "decoder_blocks"),
        "decoder_num_heads": DECODER_HEADS if decoder_num_heads is None else decoder_num_heads,
        "mlp_ratio": hidden / width,
        "condition": "none" if projection is None else "representation",
        "representation_dim": None if projection is None else projection.shape[1],
    }


def _depth(live: Mapping[str, Tensor], stack: str) -> int:
    return max((int(m[1]) + 1 for k in live if (m := re.match(rf"{stack}\.(\d+)\.", k))), default=0)
