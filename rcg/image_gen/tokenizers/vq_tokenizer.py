"""VQTokenizer: images to a grid of discrete tokens and back (the MaskGIT VQGAN, at any size)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from rcg.core.component import Settled
from rcg.core.errors import UserError
from rcg.core.precision import Precision, in_precision
from rcg.core.rng import row_seeds
from rcg.core.schema import Codes, Depth, Level, Size, check_arguments
from rcg.image_gen.tokenizers.flow.decoder import FlowDecoder, FlowSizes
from rcg.image_gen.tokenizers.quantizers import FiniteScalarQuantizer, Quantized, VectorQuantizer, count_codes
from rcg.image_gen.tokenizers.vq_layers import Decoder, Encoder


class VQTokenizer(Settled, ModelMixin, ConfigMixin):
    """The MaskGIT VQGAN: encoder, quantiser and decoder, working on images in [0, 1] of any side divisible by `factor`.

    The published tokenizer is the default: f16, 1024 codes of 256 numbers. For small images use fewer resolutions: the
    downsampling factor is patch_size * 2^(len(channel_multipliers) - 1), so three are f4, four are f8. The quantiser is a
    learned codebook, or with `levels` a finite scalar one (see `rcg.image_gen.tokenizers.quantizers`).

    Args:
        in_channels: channels of the images.
        base_channels: width of the finest level.
        channel_multipliers: width of each level, finest first, in units of `base_channels`.
        num_res_blocks: residual blocks of each level, in the encoder and in the decoder.
        num_codes: size of the codebook; with `levels` their product.
        code_dim: numbers in a code; with `levels` as many as these.
        norm_groups: groups of every GroupNorm; must divide the width of every level.
        image_size: side in pixels that the tokenizer was trained for (for pipelines; other sizes work too).
        levels: values that each number of a code takes, for a finite scalar quantiser; None: a learned codebook.
        patch_size: side of the squares of pixels that the networks see as the channels of one position (pixel unshuffling,
            arXiv 1609.05158, section 3.2), with linear paths past both networks (see
            `rcg.image_gen.tokenizers.linear_start`); 1: every pixel is a position, and there are no such paths.
        flow_decoder: sizes of a second decoder, which draws sharp images, all of one size, of those that the first one makes (see
            `rcg.image_gen.tokenizers.flow.decoder`); None: there is none.

    Raises:
        UserError: sizes that do not go together.
    """

    after_encoding: ClassVar[tuple[str, ...]] = ("decoder", "flow", "flow_decoder")
    """Submodules, and entries of the config, that token ids do not depend on."""

    @register_to_config
    def __init__(
        self,
        in_channels: Size = 3,
        base_channels: Size = 128,
        channel_multipliers: tuple[Depth, ...] = (1, 1, 2, 2, 4),
        num_res_blocks: Depth = 2,
        num_codes: Codes = 1024,
        code_dim: Size = 256,
        norm_groups: Size = 32,
        image_size: Size | None = None,
        levels: tuple[Level, ...] | None = None,
        patch_size: Depth = 1,
        flow_decoder: FlowSizes | None = None,
    ) -> None:
        super().__init__()
        check_arguments(self)
        if not channel_multipliers:
            raise UserError("channel_multipliers is empty, but a VQTokenizer needs at least one level.")
        widths = [base_channels * m for m in channel_multipliers]
        for width in {base_channels, *widths}:
            if width % norm_groups:
                raise UserError(
                    f"norm_groups {norm_groups} does not divide the {width} channels of a level; "
                    "choose a number of groups that divides base_channels."
                )
        if levels is not None and (num_codes, code_dim) != (codes := count_codes(levels), len(levels)):
            raise UserError(
                f"num_codes is {num_codes} and code_dim {code_dim}, but levels {list(levels)[:8]} make {codes} codes of "
                f"{len(levels)} numbers; give these."
            )
        self.factor: int = patch_size * 2 ** (len(widths) - 1)
        if image_size is not None and image_size % self.factor:
            raise UserError(f"image_size {image_size} is not a multiple of the tokenizer's factor {self.factor}.")
        seen, shortcut = in_channels * patch_size**2, patch_size > 1
        self.encoder = Encoder(seen, widths, base_channels, num_res_blocks, code_dim, norm_groups, shortcut)
        self.decoder = Decoder(seen, widths, num_res_blocks, code_dim, norm_groups, shortcut)
        self.flow = None if flow_decoder is None else FlowDecoder(in_channels, flow_decoder)
        self.quantize: VectorQuantizer | FiniteScalarQuantizer
        if levels is None:
            self.quantize = VectorQuantizer(num_codes, code_dim)
        else:
            self.quantize = FiniteScalarQuantizer(levels)

    def _run(self, network: torch.nn.Module, x: Tensor) -> Tensor:
        # bf16 convolutions are faster channels-last; in fp32 PyTorch's channels-last GroupNorm loses two digits on CPUs
        # (measured on the golden file: 1e-4 relative against 7e-7), so there the plain layout it is.
        dtype = next(network.parameters()).dtype
        half = dtype != torch.float32 or torch.is_autocast_enabled(x.device.type)
        x = x.to(dtype=dtype)
        return network(x.contiguous(memory_format=torch.channels_last if half else torch.contiguous_format)).float()

    def encode_latents(self, images: Tensor) -> Tensor:
        """Images [B,C,H,W] in [0,1] -> continuous latents fp32 [B,code_dim,H/f,W/f].

        Raises:
            UserError: not a batch of float images, another number of channels, or a side not divisible by `factor`.
        """
        channels = self.config["in_channels"]
        if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
            raise UserError(
                f"the tokenizer takes float images in [0, 1] of shape [batch, {channels}, height, width], "
                f"but got {images.dtype} of shape {list(images.shape)}."
            )
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor or not height or not width:
            raise UserError(
                f"images of {width}x{height} pixels cannot be tokenized: both sides must be multiples of {self.factor}; "
                "resize or crop them first."
            )
        patch = self.config["patch_size"]
        return self._run(self.encoder, images if patch == 1 else F.pixel_unshuffle(images, patch))

    def encode(self, images: Tensor) -> Tensor:
        """Images [B,C,H,W] in [0,1] -> token ids int64 [B,H/f,W/f] in [0, num_codes). See `encode_latents` for errors."""
        latents = self.encode_latents(images)
        b, d, h, w = latents.shape
        return self.quantize.nearest(latents.permute(0, 2, 3, 1).reshape(-1, d)).reshape(b, h, w)

    @torch.no_grad()
    def quantized(self, images: Tensor) -> Tensor:
        """What the tokens of images [B,C,H,W] in [0,1] stand for, fp32 [B,code_dim,H/f,W/f], for training on them: without a
        gradient, and in fp32 also under autocast, so that the tokens are those that `rcg-cache` keeps."""
        with torch.autocast(images.device.type, enabled=False):
            return self.quantize.lookup(self.encode(images))

    def decode_latents(self, latents: Tensor, precision: Precision = "fp32") -> Tensor:
        """Quantised latents [B,code_dim,h,w] -> fp32 images [B,C,h*f,w*f], not clamped. A flow decoder has no part in it."""
        patch = self.config["patch_size"]
        images = self._run(in_precision(self.decoder, precision), latents)
        return images if patch == 1 else F.pixel_shuffle(images, patch)

    def decode(self, ids: Tensor, precision: Precision = "fp32") -> Tensor:
        """Token ids int64 [B,h,w] -> fp32 images [B,C,h*f,w*f] clamped to [0,1].

        Args:
            ids: in [0, num_codes).
            precision: of the decoder (see `rcg.core.precision`); its last layer stays fp32.

        Raises:
            UserError: not an integer grid, or (on a CPU: a GPU would have to be waited for) an id outside the codebook.
        """
        if ids.ndim != 3 or ids.is_floating_point():
            raise UserError(
                f"token ids must be integers of shape [batch, h, w], but got {ids.dtype} {list(ids.shape)}."
            )
        codes = self.config["num_codes"]
        looked_at = ids.device.type == "cpu" and not torch.compiler.is_compiling() and ids.numel()
        if looked_at and (int(ids.min()) < 0 or int(ids.max()) >= codes):
            raise UserError(f"token ids must lie in [0, {codes - 1}], but got {int(ids.min())} to {int(ids.max())}.")
        images = self.decode_latents(self.quantize.lookup(ids), precision).clamp(0, 1)
        if self.flow is None:
            return images
        size = self.flow.net.config.image_size
        if images.shape[-2:] != (size, size):
            raise UserError(
                f"this tokenizer's flow decoder draws images of {size} px, but the {' x '.join(map(str, ids.shape[1:]))} tokens are "
                f"of {images.shape[-1]} x {images.shape[-2]}; take a tokenizer without one for other sizes."
            )
        drawn: Tensor = in_precision(self.flow, precision).draw(2 * images - 1, row_seeds(ids))
        return (drawn + 1).mul(0.5).clamp(0, 1)

    def with_flow_decoder(self, sizes: FlowSizes) -> VQTokenizer:
        """A tokenizer of the same tokens, with a new flow decoder that is to be trained."""
        other = VQTokenizer(**{**self.config, "flow_decoder": sizes})
        for name in ("encoder", "quantize", "decoder"):
            getattr(other, name).load_state_dict(getattr(self, name).state_dict())
        return other

    def fixed_codes(self) -> Tensor | None:
        """What each id stands for, fp32 [num_codes,code_dim], where that is fixed (FSQ); None for a learned codebook."""
        if not isinstance(self.quantize, FiniteScalarQuantizer):
            return None
        ids = torch.arange(self.quantize.num_codes, device=self.quantize.places.device)
        return self.quantize.lookup(ids[None, None])[0, :, 0].T

    def quantize_latents(self, latents: Tensor) -> Quantized:
        """Latents [B,code_dim,h,w] -> codes, ids and the commitment loss, in fp32 also under autocast."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.quantize(latents)
