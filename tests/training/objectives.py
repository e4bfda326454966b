"""A tiny stage for every kind of objective there is: each method, family and tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rcg.training.stage import Batch, Stage

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
HEAD = {"head_layers": 2, "head_hidden_dim": 32, "head_dim": 16}
TEXT = {"text_width": 16, "text_depth": 1, "text_heads": 2, "caption_bytes": 24}
ENCODERS: dict[str, dict[str, Any]] = {
    "moco-v3": {}, "byol": {}, "dino": {"prototypes": 24}, "mae": {"decoder_width": 32, "decoder_depth": 1},
    "simclr": {}, "stablerep+": {"images_per_caption": 2, "text_dim": 8, **TEXT}, "clip": TEXT,
    "synclr": {"prototypes": 12, "patch_hidden_dim": 16},
}  # fmt: skip
GENERATORS: dict[str, dict[str, Any]] = {
    "mage": {"width": 32, "depth": 2, "num_heads": 2, "decoder_depth": 1},
    "dit": {"width": 32, "depth": 2, "num_heads": 2},
    "pixel-dit": {"width": 32, "depth": 2, "num_heads": 2, "conv_channels": [8]},
    "edm": {"channels": (32, 32), "layers": 1, "attention_size": 8},
    "adm": {"base_channels": 32, "channel_multipliers": (1, 1), "num_res_blocks": 1, "head_channels": 32},
    "ldm": {"base_channels": 32, "channel_multipliers": (1, 1), "num_res_blocks": 1, "token_dim": 16},
}
FLOW: Any = {
    "image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "conv_channels": [8], "mlp_ratio": 2.0, "steps": 2,
}  # fmt: skip
TOKENIZERS = ("codebook", "fsq", "decoder", "gan", "flow-decoder")
NAMES = (*ENCODERS, *GENERATORS, *TOKENIZERS, "codes")
"""Beside those of `tests.training.stages.MadeOfAll`."""


class Samples:
    """Whatever an objective may want of a sample; random, but always the same."""

    fingerprint = "samples"

    def __init__(self, fields: tuple[str, ...], each: int | None = None, size: int = 40) -> None:
        g = np.random.default_rng(0)
        images = g.integers(0, 256, (size, 3, 16, 16) if each is None else (size, each, 3, 16, 16), dtype=np.uint8)
        whole = {
            "images": images,
            "latents": g.standard_normal((size, 4, 8, 8)).astype(np.float32),
            "tokens": g.integers(0, 12, (size, 4, 4)),
            "representations": g.standard_normal((size, 12)).astype(np.float32),
            "labels": np.arange(size) % 4,
            "identities": np.arange(size),
            "indices": np.arange(size),
            "captions": g.integers(65, 90, (size, 24), dtype=np.uint8),
        }
        self.fields = {k: torch.from_numpy(v) for k, v in whole.items() if k in fields}
        self.size = size

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> Batch:
        return {k: v[torch.from_numpy(indices)] for k, v in self.fields.items()}


def made(name: str) -> Stage:
    """The stage called so, with the same weights each time."""
    torch.manual_seed(0)
    if name in ENCODERS:
        return _encoder(name)
    if name in GENERATORS:
        return _generator(name)
    if name in TOKENIZERS:
        return _tokenizer(name)
    assert name == "codes"
    from rcg.rdm.codes.objective import CodesObjective
    from rcg.rdm.codes.transformer import CodeTransformer
    from rcg.rdm.train import RDMStage

    rdm = CodeTransformer(representation_dim=12, positions=3, num_codes=8, width=16, depth=2, num_heads=2)
    return RDMStage(CodesObjective(rdm), Samples(("representations",)), eval_samples=4)


def _encoder(name: str) -> Stage:
    from rcg.encoders.recipes import RECIPES
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.encoders.train import EncoderStage

    recipe = RECIPES[name](**ENCODERS[name])  # type: ignore[index]
    head = {} if name == "mae" else HEAD | {"head_type": recipe.head}
    if name == "clip":
        head |= {"head_layers": 1}
    encoder = SSLEncoder("vit_tiny_patch16_224", VIT, image_size=16, **head)
    each = 1 if name == "clip" else recipe.samples.images
    plain = Samples(("images", "labels"))
    data = Samples(("images", "identities", "captions", "indices"), each)
    return EncoderStage(recipe.objective(encoder, 16), data, plain=plain, eval_samples=20)


def _generator(name: str) -> Stage:
    from rcg.image_gen.protocol import Task
    from rcg.image_gen.recipes import RECIPES
    from rcg.image_gen.train import GeneratorStage

    more = {"num_codes": 12} if name == "mage" else {}
    recipe = RECIPES[name](**GENERATORS[name], **more)  # type: ignore[index]
    shape = (4, 4) if name == "mage" else (4, 8, 8) if name in ("dit", "ldm") else (3, 16, 16)
    objective = recipe.objective(Task("representation", shape, representation_dim=12))
    data = Samples((objective.field, "representations"))
    return GeneratorStage(objective, data, held_out=4, ema=True)


def _tokenizer(name: str) -> Stage:
    from rcg.image_gen.tokenizers.settings import CodebookSettings, TokenizerLoss
    from rcg.image_gen.tokenizers.train import TokenizerStage
    from rcg.image_gen.tokenizers.vq_losses import PatchDiscriminator
    from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer

    levels = (4, 4) if name == "fsq" else None
    sizes = {"num_codes": 16, "code_dim": 2 if levels else 4, "levels": levels}
    tokenizer = VQTokenizer(base_channels=8, channel_multipliers=(1, 2, 2), num_res_blocks=1, norm_groups=4, **sizes)
    if name == "flow-decoder":
        from rcg.image_gen.tokenizers.flow.objective import FlowDecoderObjective
        from rcg.image_gen.tokenizers.flow.train import FlowDecoderStage

        objective = FlowDecoderObjective(tokenizer.with_flow_decoder(FLOW))
        return FlowDecoderStage(objective, Samples(("images",)), eval_images=8)
    discriminator = PatchDiscriminator(width=8) if name == "gan" else None
    return TokenizerStage(
        tokenizer,
        Samples(("images",)),
        loss=TokenizerLoss(adversarial_weight=0.5 if discriminator else 0.0, adversarial_start=2),
        codebook=CodebookSettings(codebook_decay=0.9, revive_after=4, codebook_warmup=2),
        discriminator=discriminator,
        decoder_only=name == "decoder",
        eval_images=8,
    )
