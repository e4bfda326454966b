"""What a flow decoder is trained to do: flow matching towards an image, given what its tokens look like."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from rcg.core import draws
from rcg.image_gen.pixels.objective import PixelObjective
from rcg.image_gen.tokenizers.flow.decoder import FlowDecoder
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer


class FlowDecoderObjective(nn.Module):
    """The loss of `rcg.image_gen.pixels.objective.PixelObjective`, where what the first decoder makes of an image's tokens is known.

    Args:
        tokenizer: with a flow decoder, which alone is trained.
        time_mean, time_std, noise_floor: see `PixelObjective`.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self, tokenizer: VQTokenizer, time_mean: float = -0.4, time_std: float = 1.2, noise_floor: float = 0.05
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        for module in (tokenizer.encoder, tokenizer.quantize, tokenizer.decoder):
            module.requires_grad_(False)
        # not registered: its model is the decoder's
        self._matching = [PixelObjective(self.decoder.net, time_mean, time_std, noise_floor)]

    @property
    def decoder(self) -> FlowDecoder:
        """What is trained."""
        return cast(FlowDecoder, self.tokenizer.flow)

    @property
    def matching(self) -> PixelObjective:
        """Times and weights."""
        return self._matching[0]

    def losses(self, images: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """The loss of each of B images float [B, 3, S, S] in [0, 1], at times [B], with this noise: [B]."""
        with torch.no_grad():
            blurred = 2 * self.tokenizer.decode_latents(self.tokenizer.quantized(images)).clamp(0, 1) - 1
        return self.matching.losses(2 * images - 1, times, noise, {"joined": self.decoder.embed(blurred)})

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """batch["images"]: float [B, 3, S, S] in [0, 1]. Returns `loss`, a scalar."""
        images = batch["images"]
        times = self.matching.times(draws.stratified(len(images), images.device))
        return {"loss": self.losses(images, times, draws.normal_like(images)).mean()}
