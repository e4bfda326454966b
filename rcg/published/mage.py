"""Official MAGE checkpoints of RCG (LTH14/rcg) → `MageTransformer`, with every key of the file accounted for."""

from __future__ import annotations

import math
import re
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
from rcg.image_gen.mage.transformer import MageTransformer

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


def convert_mage(
    contents: Mapping[str, Any],
    source: str,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
) -> Conversion[MageTransformer]:
    """Read the generator out of an official `mage-….pth` file.

    Args:
        contents: what `rcg.core.state_dicts.read_checkpoint` gave; the weights stand under `model`.
        source: what a message calls the file.
        num_heads: of the encoder; None takes what the published widths have (768: 12, 1024: 16, 1280: 16).
        decoder_num_heads: of the decoder; None is 16.

    Returns:
        The model in eval mode (fp32), and what became of each key. All sizes are inferred from the tensors. A file with
        `latent_prior_proj` takes representations, one with `class_emb` classes, one with neither nothing.

    Raises:
        UserError: no MAGE checkpoint, or a key missing, unexpected or of another shape than its fellows.
    """
    weights, wrapper = without_wrapper(weights_under(contents, ["model"], f"{source} is no official MAGE checkpoint"))
    dropped = {k: reason for k in weights for pattern, reason in DROPPED.items() if re.match(pattern, k)}
    live = {k: v for k, v in weights.items() if k not in dropped}
    config = _config(live, source, num_heads, decoder_num_heads)
    if config["condition"] != "representation" and "fake_latent" in live:
        dropped["fake_latent"] = "only a model that takes representations reads it"
        del live["fake_latent"]
    notes: list[str] = []
    model = build_filled(lambda: MageTransformer(**config), widened(live, notes), f"the generator in {source}")
    if config["condition"] == "class":
        notes.append("the reference trained this model without a null class, so it cannot be guided.")
    return Conversion(
        model, "mage", {wrapper + k: k for k in live}, {wrapper + k: v for k, v in dropped.items()}, notes
    )


def _config(
    live: Mapping[str, Tensor], source: str, num_heads: int | None, decoder_num_heads: int | None
) -> dict[str, Any]:
    """Arguments of `MageTransformer`, read off the tensors' shapes."""
    try:
        vocab_size, width = live["token_emb.word_embeddings.weight"].shape
        num_tokens = live["token_emb.position_embeddings.weight"].shape[0] - 1
        decoder_width = live["decoder_embed.weight"].shape[0]
        hidden = live["blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as e:
        near = nearest(str(e.args[0]), live.keys())
        raise UserError(f"{source} holds no MAGE generator: {e.args[0]} is missing{near}.") from None
    grid_size = math.isqrt(num_tokens)
    if grid_size**2 != num_tokens:
        raise UserError(f"{source} has positions for {num_tokens} tokens, which is not a square grid.")
    if vocab_size <= LEGACY_WORDS:
        raise UserError(
            f"{source} has a vocabulary of {vocab_size} words, but official files have codes + {LEGACY_WORDS}."
        )
    heads = KNOWN_HEADS.get(width) if num_heads is None else num_heads
    if heads is None:
        raise UserError(f"{source} is {width} wide, which is none of the published sizes; add --generator-num-heads.")
    num_codes = vocab_size - LEGACY_WORDS
    projection, classes = live.get("latent_prior_proj.weight"), live.get("class_emb.weight")
    condition = "class" if classes is not None else "none" if projection is None else "representation"
    return {
        "grid_size": grid_size,
        "num_codes": num_codes,
        "vocab_size": vocab_size,
        "slot_token_id": num_codes + LEGACY_SLOT,
        "width": width,
        "depth": numbered(live, r"blocks\.(\d+)\."),
        "num_heads": heads,
        "decoder_width": decoder_width,
        "decoder_depth": numbered(live, r"decoder_blocks\.(\d+)\."),
        "decoder_num_heads": DECODER_HEADS if decoder_num_heads is None else decoder_num_heads,
        "mlp_ratio": hidden / width,
        "condition": condition,
        "representation_dim": projection.shape[1] if condition == "representation" and projection is not None else None,
        "num_classes": None if classes is None else classes.shape[0],
        "condition_dropout": 0.1 if condition == "representation" else 0.0,
    }
