"""`rcg-train-generator`: train MAGE, which turns a representation (or a class, or nothing) into an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from rcg.core.errors import UserError
from rcg.core.schema import Codes, CountOrZero, Depth, MlpRatio, NonNegative, Share, ShareBelowOne, Size
from rcg.scripts._command import run_command
from rcg.training.config import TrainingConfig

if TYPE_CHECKING:
    from rcg.data.cache import Cache
    from rcg.data.images import ImageDataset

SAMPLING_STEPS = 20


@dataclass
class Config:
    """Flags of rcg-train-generator."""

    data: str
    """A cache with tokens (from rcg-cache), or an image source, which needs --tokenizer."""
    condition: Literal["representation", "class", "none"]
    """What images are generated from. The paper's comparison is three runs that differ in this and --out only."""
    tokenizer: Path | None = None
    """Folder of the frozen tokenizer. With images it runs on every step; a cache must be its work. Draws the previews."""
    encoder: Path | None = None
    """Folder of the frozen encoder, for condition representation. With images it runs on every step; a cache must be
    its work."""
    image_size: Size | None = None
    """With images: side in pixels of the random crops (default: the size that the tokenizer was made for)."""
    num_codes: Codes | None = None
    """With a cache and without --tokenizer: number of the tokenizer's codes."""
    held_out: CountOrZero = 256
    """Images (at most a tenth of the data) that are not trained on; the evaluation looks at them."""
    width: Size = 768
    """Size of the encoder's and the decoder's residual stream."""
    depth: Depth = 12
    """Blocks of the encoder."""
    num_heads: Depth = 12
    """Attention heads of the encoder."""
    decoder_depth: Depth = 8
    """Blocks of the decoder."""
    decoder_num_heads: Depth = 16
    """Attention heads of the decoder."""
    mlp_ratio: MlpRatio = 4.0
    """Hidden size of the MLPs as a multiple of the width."""
    dropout: ShareBelowOne = 0.1
    """Dropout in embeddings, attention and MLPs."""
    condition_dropout: ShareBelowOne = 0.1
    """Share of samples trained without their condition, so that guidance works; 0 makes a model without guidance."""
    mask_ratio_mean: Share = 0.75
    """Mean of the truncated normal from which the masked share of a batch is drawn."""
    mask_ratio_std: NonNegative = 0.25
    """Its standard deviation."""
    mask_ratio_min: Share = 0.5
    """Least masked share; this share of the tokens is not shown to the encoder at all."""
    label_smoothing: ShareBelowOne = 0.1
    """Label smoothing of the cross-entropy."""
    ema: bool = False
    """Keep the moving average of the weights and export it (the paper does not; short runs gain by it)."""
    sampling_steps: Size | None = None
    """Steps of the exported sampler (default: 20, or one a token if there are fewer)."""
    temperature: NonNegative = 6.0
    """Choice temperature of the exported sampler (paper: 6 for B, 11 for L)."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            out=tyro.MISSING, epochs=200, batch_size=256, base_lr=1.5e-4, warmup=0.05, clip_grad=3.0
        )
    )
    """The training loop."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if self.encoder is not None and self.condition != "representation":
            raise UserError(f"--encoder has no effect with --condition {self.condition}; leave it out.")
        if self.num_codes is not None and self.tokenizer is not None:
            raise UserError("--num-codes is known from --tokenizer; leave it out.")


def open_data(config: Config, tokenizer: Any, encoder: Any) -> Cache | ImageDataset:
    """The data set that the flags name, checked against the frozen models.

    Args:
        config: the flags.
        tokenizer: the frozen `VQTokenizer`, or None.
        encoder: the frozen `SSLEncoder`, or None.

    Raises:
        UserError: a cache that lacks a field or was computed by other models, or images without models.
    """
    from rcg.data.cache import Cache, is_cache
    from rcg.data.images import ImageDataset
    from rcg.data.sources import open_source

    by_representation = config.condition == "representation"
    if is_cache(config.data):
        if config.image_size is not None:
            raise UserError("--image-size has no effect with a cache, whose images have a size already; leave it out.")
        cache = Cache(config.data, ["tokens", "representations"] if by_representation else ["tokens"])
        cache.require("tokens", tokenizer)
        if by_representation:
            cache.require("representations", encoder)
        if tokenizer is None and config.num_codes is None:
            raise UserError("the number of codes is not known; add --tokenizer DIR (or --num-codes).")
        return cache
    source = open_source(config.data)
    if tokenizer is None:
        raise UserError(
            f"{config.data} is not a cache, and images need a tokenizer: add --tokenizer DIR, or compute a cache first "
            "with rcg-cache."
        )
    if by_representation and encoder is None:
        raise UserError(
            f"{config.data} is not a cache, and condition representation needs an encoder: add --encoder DIR, or compute "
            "a cache first with rcg-cache."
        )
    size = config.image_size or tokenizer.config.image_size
    if size is None:
        raise UserError("the tokenizer does not say what size it was made for; add --image-size.")
    if size % tokenizer.factor:
        raise UserError(
            f"--image-size {size} is no multiple of {tokenizer.factor}, by which the tokenizer shrinks images."
        )
    return ImageDataset(source, size, "crop_flip")


def run(config: Config) -> None:
    """Train the model that the flags describe."""
    import torch

    from rcg.core.components import load_model
    from rcg.data.cache import Cache
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.image_gen.mage.scheduler import MaskGITScheduler
    from rcg.image_gen.mage.transformer import MageTransformer
    from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer
    from rcg.image_gen.train import GeneratorStage, MageObjective, check_grid
    from rcg.training.loop import train

    tokenizer = None if config.tokenizer is None else load_model(VQTokenizer, config.tokenizer)
    encoder = None if config.encoder is None else load_model(SSLEncoder, config.encoder)
    data = open_data(config, tokenizer, encoder)
    if config.condition == "class" and data.labels is None:
        raise UserError(
            f"--condition class needs labels, but {config.data} has none; put each class in a folder of its own, or use "
            "--condition representation or none."
        )
    representation_dim = None
    if isinstance(data, Cache):
        grid_size = check_grid(data.fields["tokens"])
        if config.condition == "representation":
            representation_dim = data.fields["representations"][0]
        encoder = None  # its work is in the cache
    else:
        assert tokenizer is not None
        grid_size = data.size // tokenizer.factor
        if encoder is not None:
            representation_dim = encoder.representation_dim
    torch.manual_seed(config.training.seed)
    model = MageTransformer(
        grid_size=grid_size,
        num_codes=config.num_codes if tokenizer is None else tokenizer.config.num_codes,
        width=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        decoder_depth=config.decoder_depth,
        decoder_num_heads=config.decoder_num_heads,
        mlp_ratio=config.mlp_ratio,
        dropout=config.dropout,
        condition=config.condition,
        representation_dim=representation_dim,
        num_classes=data.num_classes if config.condition == "class" else None,
        condition_dropout=config.condition_dropout,
    )
    steps = config.sampling_steps or min(SAMPLING_STEPS, model.num_tokens)
    if steps > model.num_tokens:
        raise UserError(f"--sampling-steps is {steps}, but an image has only {model.num_tokens} tokens; use fewer.")
    stage = GeneratorStage(
        MageObjective(
            model, config.mask_ratio_mean, config.mask_ratio_std, config.mask_ratio_min, config.label_smoothing
        ),
        data,
        MaskGITScheduler(model.config["mask_token_id"], steps, config.temperature),
        tokenizer=tokenizer,
        encoder=encoder,
        held_out=config.held_out,
        ema=config.ema,
    )
    flags = {k: v for k, v in asdict(config).items() if k != "training"}
    train(stage, config.training, extra_config={k: str(v) if isinstance(v, Path) else v for k, v in flags.items()})


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rcg-train-generator`."""
    run_command("rcg-train-generator", Config, run, "Train the image generator (MAGE) on tokens.", argv)


if __name__ == "__main__":
    main()
