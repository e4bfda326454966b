"""Tokenizers of any kind as one thing: what caches store of them, and what commands ask of them."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor, nn

from rcg.core.precision import Precision
from rcg.image_gen.tokenizers.autoencoder import AUTOENCODERS, LatentCodec
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer

Storage = Literal["float32", "float16", "uint16", "int32"]
TOKENIZERS: tuple[type[nn.Module], ...] = (VQTokenizer, *AUTOENCODERS)


class Codec(Protocol):
    """Images ↔ the codes of one tokenizer.

    Attributes:
        field: name of its codes in a batch and in a cache.
        factor: how much smaller a grid of codes is than its image.
        image_size: side in pixels that it was trained for, or None.
    """

    field: str
    factor: int
    image_size: int | None

    def encode(self, images: Tensor) -> Tensor:
        """Images float [B, 3, H, W] in [0, 1] → codes [B, …]."""
        ...

    def decode(self, codes: Tensor, precision: Precision = "fp32") -> Tensor:
        """Codes [B, …] → images float32 [B, 3, H, W] in [0, 1]."""
        ...

    def storage(self, half: bool) -> Storage:
        """The dtype that a cache stores codes in; `half`: in 16 bits where that loses precision."""
        ...


class TokenCodec:
    """A `VQTokenizer` as a `Codec`."""

    field = "tokens"

    def __init__(self, model: VQTokenizer) -> None:
        self.model = model
        self.factor = model.factor
        flow = model.config["flow_decoder"]
        self.image_size: int | None = model.config["image_size"] if flow is None else flow["image_size"]

    def encode(self, images: Tensor) -> Tensor:
        """See `VQTokenizer.encode`."""
        return self.model.encode(images)

    def decode(self, codes: Tensor, precision: Precision = "fp32") -> Tensor:
        """See `VQTokenizer.decode`."""
        return self.model.decode(codes, precision)

    def storage(self, half: bool) -> Storage:
        """Tokens are whole numbers, of which `half` takes nothing."""
        return "uint16" if self.model.config["num_codes"] <= 2**16 else "int32"


def codec_of(tokenizer: nn.Module) -> Codec:
    """A tokenizer's codec; `UserError` for a module that is none."""
    return TokenCodec(tokenizer) if isinstance(tokenizer, VQTokenizer) else LatentCodec(tokenizer)
