"""`rcg-train-tokenizer`: train a tokenizer from scratch on your own images, or the decoder of one that you have."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from rcg.core.errors import UserError
from rcg.core.schema import Codes, Count, Depth, Level, PositiveShare, Range, Size, flag_of
from rcg.image_gen.tokenizers.settings import CodebookSettings, TokenizerLoss
from rcg.scripts._command import Settings, flags, run_command
from rcg.training.config import TrainingConfig

if TYPE_CHECKING:
    from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer

SIZES = ("factor", "patch_size", "base_channels", "channel_multipliers", "num_res_blocks", "num_codes", "code_dim",
         "levels", "norm_groups")  # fmt: skip
LINEAR_IMAGES = 256
"""So many images, or up to twice as many, give the principal components that the linear paths of a tokenizer of --patch-size
above 1 begin with."""
MULTIPLIERS = {1: (1,), 2: (1, 2), 4: (1, 2, 4), 8: (1, 1, 2, 4), 16: (1, 1, 2, 2, 4)}


@dataclass
class FlowFlags(Settings):
    """Of --flow-decoder; a decoder that is trained further, or begins with a generator, has its own."""

    flow_patch_size: Annotated[int, Range(2, 8)] = 4
    """Pixels of a patch's side."""
    flow_width: Size = 192
    """Size of its residual stream."""
    flow_depth: Depth = 6
    """Transformer blocks."""
    flow_heads: Depth = 3
    """Attention heads of a block."""
    flow_channels: tuple[Size, ...] = ()
    """Channels of convolutions around the transformer, finest first, such as 32 64."""
    flow_steps: Annotated[int, Range(1, 1000)] = 10
    """Evaluations for an image."""
    flow_time_mean: Annotated[float, Range(-10, 10)] = -0.4
    """Training times are t = sigmoid(N(this, 1.2)), 0 noise and 1 the image: lower than for a generator, as the blurred image counts
    most where there is noise."""
    flow_start: str | None = None
    """Begin with the weights of a pixel transformer of the same images: folder of the generator or its pipeline, or name in the
    box (rcg/cifar10)."""


@dataclass
class Config:
    """Train a VQTokenizer."""

    data: str
    """A folder of images; shards, a zip archive, a .parquet or .arrow table of them, also at an address (s3://bucket/x.zip);
    hf:OWNER/NAME:SPLIT, a data set on the Hugging Face Hub; or an
    embedded set: shapes[:n=2000,size=32,seed=0] or clothing[:split=train,…]."""
    decoder_of: Path | None = None
    """Folder of a trained tokenizer: start from it and train its decoder only. Tokens of images stay the same, so caches
    and generators made with it fit the result. The sizes are its own; flags of the codebook play no part."""
    flow_decoder: bool = False
    """With --decoder-of: train a second decoder after the first, a pixel transformer that draws from noise what the tokens leave
    open, by flow matching; few tokens then cost no sharpness. Flags of losses play no part."""
    flow: FlowFlags = field(default_factory=FlowFlags)
    """Sizes of that decoder."""
    image_size: Size | None = None
    """Side in pixels of the images it is trained on (default: with --decoder-of that tokenizer's, else 32)."""
    flip: bool = True
    """Train on random crops and flips (of the short side's square); off: the centre square only."""
    crop_scale: PositiveShare = 1.0
    """Least share of an image's area in a random crop, in (0, 1]."""
    held_out: Count = 512
    """Images (at most a tenth of the data) that are not trained on; the evaluation looks at them."""
    factor: Size = 4
    """Pixels of a token's side: 2, 4, 8 or 16 (other powers of two with --channel-multipliers)."""
    patch_size: Depth = 1
    """Side of the squares of pixels that are one position to the networks; the rest of --factor is for levels. Above 1,
    linear paths join squares and codes past the networks, and begin at the principal components of some images."""
    base_channels: Size = 64
    """Width of the finest level."""
    channel_multipliers: tuple[Depth, ...] | None = None
    """Width of each level in units of --base-channels, finest first (default, by factor over patch size: 1, 1 2, 1 2 4,
    1 1 2 4 or 1 1 2 2 4)."""
    num_res_blocks: Depth = 1
    """Residual blocks of a level; the published network has 2."""
    num_codes: Codes = 1024
    """Size of the codebook."""
    code_dim: Size = 32
    """Numbers in a code; the published tokenizer has 256."""
    levels: tuple[Level, ...] | None = None
    """Quantise without a learned codebook: round each number of a code to one of so many values (finite scalar
    quantisation), e.g. 8 5 5 5 for 1000 codes of 4 numbers. Flags of the codebook then play no part."""
    norm_groups: Size | None = None
    """Groups of GroupNorm (default: at most 32, of four channels at least)."""
    loss: TokenizerLoss = field(default_factory=TokenizerLoss)
    """Weights of its parts."""
    perceptual_encoder: Path | None = None
    """Folder of the encoder for --perceptual-weight, as rcg-train-encoder leaves it."""
    perceptual_layers: tuple[Annotated[int, Range(-1024, 1023)], ...] | None = None
    """Which of its blocks or levels to compare, counted from 0, negative from the end (default: all)."""
    discriminator_channels: Size = 64
    """Width of the discriminator's first layer."""
    discriminator_layers: Annotated[int, Range(1, 16)] = 2
    """Layers of the discriminator after the first; each but the last halves its patch grid."""
    codebook: CodebookSettings = field(default_factory=CodebookSettings)
    """How the codebook is trained."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            out=tyro.MISSING,
            epochs=20,
            batch_size=64,
            lr=1e-3,
            warmup=100,
            weight_decay=0.0,
            clip_grad=1.0,
        )
    )
    """The training loop."""

    @property
    def side(self) -> int:
        """`image_size`, with its default filled in."""
        return self.image_size or 32

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if self.decoder_of is None:
            self.image_size = self.side
            self._check_sizes()
            if self.flow_decoder:
                raise UserError(
                    "--flow-decoder draws from the tokens of a trained tokenizer; give its folder with --decoder-of."
                )
        if (given := self.flow.given()) and not self.flow_decoder:
            raise UserError(f"{flag_of(given[0])} is for --flow-decoder; add that or leave it out.")
        if self.flow_decoder:
            for name in ("perceptual_weight", "adversarial_weight"):
                if getattr(self.loss, name) > 0:
                    raise UserError(f"{flag_of(name)} has no effect with --flow-decoder; leave it out.")
        if self.loss.perceptual_weight > 0 and self.perceptual_encoder is None:
            raise UserError("--perceptual-weight needs an encoder; give its folder with --perceptual-encoder.")
        if self.perceptual_encoder is not None and self.loss.perceptual_weight == 0:
            raise UserError("--perceptual-encoder has no effect at weight 0; give --perceptual-weight too.")
        if self.perceptual_layers is not None and self.perceptual_encoder is None:
            raise UserError("--perceptual-layers has no effect without --perceptual-encoder; leave it out.")
        if not self.flip and self.crop_scale != Config.crop_scale:
            raise UserError("--crop-scale has no effect with --no-flip, which takes the centre; leave one of them out.")
        if self.loss.adversarial_weight > 0 and self.discriminator_channels % 4:
            raise UserError(
                f"--discriminator-channels is {self.discriminator_channels}, but it must be a multiple of 4."
            )

    def _check_sizes(self) -> None:
        if self.channel_multipliers is None and (
            self.factor % self.patch_size or self.factor // self.patch_size not in MULTIPLIERS
        ):
            times = "" if self.patch_size == 1 else f" times --patch-size {self.patch_size}"
            raise UserError(
                f"--factor {self.factor} is none of 1, 2, 4, 8, 16{times}; give its --channel-multipliers too."
            )
        if self.channel_multipliers is not None:
            made = self.patch_size * 2 ** (len(self.channel_multipliers) - 1)
            if made != self.factor:
                raise UserError(
                    f"{len(self.channel_multipliers)} --channel-multipliers at --patch-size {self.patch_size} make a factor "
                    f"of {made}, but --factor is {self.factor}; give one for each level."
                )
        if self.side % self.factor:
            raise UserError(f"--image-size {self.side} is not a multiple of --factor {self.factor}.")
        if self.levels is not None:
            from rcg.image_gen.tokenizers.quantizers import count_codes

            sizes = {"num_codes": count_codes(self.levels), "code_dim": len(self.levels)}
            for name, value in sizes.items():
                if getattr(self, name) not in (Config.__dataclass_fields__[name].default, value):
                    flag = flag_of(name)
                    raise UserError(f"{flag} is {getattr(self, name)}, but --levels make it {value}; leave {flag} out.")

    def load_tokenizer(self) -> VQTokenizer:
        """The tokenizer of `--decoder-of`.

        Raises:
            UserError: it cannot be loaded, does not fit the images, or flags ask for other sizes than its own.
        """
        from rcg.core.components import load_model
        from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer

        assert self.decoder_of is not None
        tokenizer = load_model(VQTokenizer, self.decoder_of)
        sizes = {**tokenizer.config, "factor": tokenizer.factor}
        for name in SIZES:
            asked, own = getattr(self, name), sizes[name]
            own = tuple(own) if isinstance(own, list) else own
            if asked not in (Config.__dataclass_fields__[name].default, own):
                flag = flag_of(name)
                raise UserError(f"{flag} {asked} is not that of {self.decoder_of} ({own}); leave {flag} out.")
        flow = tokenizer.config["flow_decoder"]
        own = tokenizer.config["image_size"] if flow is None else flow["image_size"]
        if self.image_size is None:
            self.image_size = own
        if self.flow_decoder and own not in (None, self.side):
            raise UserError(
                f"--image-size {self.side} is not that of {self.decoder_of} ({own}), and a flow decoder draws images of one "
                "size; leave --image-size out."
            )
        if self.side % tokenizer.factor:
            raise UserError(
                f"--image-size {self.side} is not a multiple of {tokenizer.factor}, the factor of {self.decoder_of}."
            )
        if tokenizer.config["flow_decoder"] is not None and not self.flow_decoder:
            raise UserError(
                f"{self.decoder_of} has a flow decoder, which was made for its first one; add --flow-decoder."
            )
        return tokenizer

    def load_flow_decoder(self, tokenizer: VQTokenizer) -> VQTokenizer:
        """The tokenizer with the flow decoder that is to be trained: its own, a new one, or one that begins as a generator.

        Raises:
            UserError: flags of sizes that are known already, or a generator of another kind or size.
        """
        from rcg.core.components import load_model
        from rcg.image_gen.pixel_dit.transformer import PixelDiT
        from rcg.image_gen.start import start_from
        from rcg.image_gen.tokenizers.flow.decoder import FlowSizes

        flow, own = self.flow, tokenizer.config["flow_decoder"]
        if own is not None:
            if given := [name for name in flow.given() if name not in ("flow_steps", "flow_time_mean")]:
                raise UserError(
                    f"{self.decoder_of} has a flow decoder, which is trained further; leave {flag_of(given[0])} out."
                )
            steps = flow.flow_steps if "flow_steps" in flow.given() else own["steps"]
            other = tokenizer.with_flow_decoder(cast(FlowSizes, {**own, "steps": steps}))
            other.load_state_dict(tokenizer.state_dict())
            return other
        sizes: FlowSizes = {
            "image_size": self.side,
            "patch_size": flow.flow_patch_size,
            "width": flow.flow_width,
            "depth": flow.flow_depth,
            "num_heads": flow.flow_heads,
            "conv_channels": list(flow.flow_channels),
            "mlp_ratio": 4.0,
            "steps": flow.flow_steps,
        }
        if flow.flow_start is None:
            return tokenizer.with_flow_decoder(sizes)
        if given := [name for name in flow.given() if name not in ("flow_steps", "flow_time_mean", "flow_start")]:
            raise UserError(f"{flag_of(given[0])} is that of --flow-start; leave it out.")
        generator = load_model(PixelDiT, flow.flow_start)
        config = generator.config
        if config.image_size != self.side:
            raise UserError(
                f"--flow-start {flow.flow_start} makes images of {config.image_size} px, not of --image-size {self.side}; "
                "start from another generator, or from none."
            )
        sizes.update({
            "patch_size": config.patch_size,
            "width": config.width,
            "depth": config.depth,
            "num_heads": config.num_heads,
            "conv_channels": list(config.conv_channels or []),
            "mlp_ratio": config.mlp_ratio,
        })  # fmt: skip
        other = tokenizer.with_flow_decoder(sizes)
        assert other.flow is not None
        start_from(other.flow.net, generator)
        return other

    def tokenizer_config(self) -> dict[str, Any]:
        """Arguments of `VQTokenizer`, with defaults filled in."""
        from rcg.image_gen.unets import norm_groups

        multipliers = self.channel_multipliers or MULTIPLIERS[self.factor // self.patch_size]
        return {
            "base_channels": self.base_channels,
            "channel_multipliers": multipliers,
            "num_res_blocks": self.num_res_blocks,
            "num_codes": self.num_codes if self.levels is None else prod(self.levels),
            "code_dim": self.code_dim if self.levels is None else len(self.levels),
            "levels": self.levels,
            "patch_size": self.patch_size,
            "norm_groups": self.norm_groups or norm_groups([self.base_channels]),
            "image_size": self.side,
        }


def run(config: Config) -> None:
    """Build tokenizer and data, and train."""
    import numpy as np
    import torch

    from rcg.data.images import ImageDataset, to_unit
    from rcg.data.sources import open_source
    from rcg.image_gen.tokenizers.flow.objective import FlowDecoderObjective
    from rcg.image_gen.tokenizers.flow.train import FlowDecoderStage
    from rcg.image_gen.tokenizers.linear_start import start_linear
    from rcg.image_gen.tokenizers.train import ReconstructionStage, TokenizerStage
    from rcg.image_gen.tokenizers.vq_losses import PatchDiscriminator
    from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer
    from rcg.training.loop import train
    from rcg.training.subset import Subset, hold_out

    torch.manual_seed(config.training.seed)
    tokenizer = VQTokenizer(**config.tokenizer_config()) if config.decoder_of is None else config.load_tokenizer()
    discriminator = None
    if config.loss.adversarial_weight > 0:
        channels = tokenizer.config["in_channels"]
        discriminator = PatchDiscriminator(channels, config.discriminator_channels, config.discriminator_layers)
        discriminator.check_size(config.side)
    perceptual = _perceptual(config) if config.perceptual_encoder is not None else None
    source = open_source(config.data)
    plain = ImageDataset(source, config.side)
    training = plain
    if config.flip:
        training = ImageDataset(source, config.side, "crop_flip", config.crop_scale)
    kept, held = hold_out(len(source), config.held_out)
    if config.decoder_of is None and config.patch_size > 1:
        first = kept[
            :: max(1, len(kept) // LINEAR_IMAGES)
        ]  # spread over the data, which may be in the order of classes
        start_linear(tokenizer, to_unit(plain.batch(first, np.zeros(len(first), np.uint64))["images"]))
    held_out = Subset(plain, held) if len(held) else Subset(plain, kept)
    stage: ReconstructionStage
    if config.flow_decoder:
        objective = FlowDecoderObjective(config.load_flow_decoder(tokenizer), config.flow.flow_time_mean)
        stage = FlowDecoderStage(objective, Subset(training, kept), held_out, config.held_out)
    else:
        length = config.training.total_steps(len(kept))
        if config.levels is None and length <= config.codebook.codebook_warmup:
            print(
                f"The {length} steps of this run are all within --codebook-warmup {config.codebook.codebook_warmup}: the decoder will never "
                "have seen a code. Lower it, or train longer.",
                file=sys.stderr,
            )
        stage = TokenizerStage(
            tokenizer,
            Subset(training, kept),
            held_out,
            loss=config.loss,
            codebook=config.codebook,
            perceptual=perceptual,
            discriminator=discriminator,
            decoder_only=config.decoder_of is not None,
            eval_images=config.held_out,
        )
    train(stage, config.training, extra_config=flags(config, without=("training",)))


def _perceptual(config: Config) -> Any:
    """The frozen encoder of the perceptual term; it compares the chosen layers only."""
    import torch

    from rcg.core.components import load_model
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.image_gen.tokenizers.vq_losses import ChosenMaps

    assert config.perceptual_encoder is not None
    encoder = load_model(SSLEncoder, config.perceptual_encoder)
    chosen = encoder if config.perceptual_layers is None else ChosenMaps(encoder, config.perceptual_layers)
    with torch.no_grad():  # an architecture without maps, or a layer that is not there, shows now
        chosen.feature_maps(torch.zeros(1, 3, config.side, config.side))
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rcg-train-tokenizer`."""
    description = "Train a tokenizer (images to a grid of discrete tokens and back) from scratch on your own images."
    run_command("rcg-train-tokenizer", Config, run, description, argv)


if __name__ == "__main__":
    main()
