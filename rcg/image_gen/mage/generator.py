"""MAGE as an `ImageGenerator`: the transformer, MaskGIT's scheduler and a VQ tokenizer together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rcg.core.blocks import in_blocks, rows_of_images
from rcg.core.errors import UserError
from rcg.core.precision import Precision, in_precision
from rcg.core.replay import is_replaying
from rcg.image_gen.mage.sampling import generate_tokens
from rcg.image_gen.mage.scheduler import MaskGITScheduler
from rcg.image_gen.mage.transformer import MageTransformer
from rcg.image_gen.protocol import ImageGenerator, Request
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer


class MageGenerator(ImageGenerator):
    """See `rcg.image_gen.protocol.ImageGenerator`. Its codes are token ids, int64 [B, h, w].

    Args:
        model: in evaluation mode.
        scheduler: how tokens are revealed.
        tokenizer: a `VQTokenizer`; training does without one where it has tokens already.
        guiding_model: for autoguidance.
    """

    def __init__(
        self,
        model: MageTransformer,
        scheduler: MaskGITScheduler,
        tokenizer: nn.Module | None = None,
        guiding_model: MageTransformer | None = None,
    ) -> None:
        self.model, self.scheduler, self.guiding_model = model, scheduler, guiding_model
        self.tokenizer: VQTokenizer | None = tokenizer  # type: ignore[assignment]

    @property
    def decodable(self) -> bool:
        return self.tokenizer is not None

    def check(self) -> None:
        """Raise `UserError` if model, scheduler and tokenizer do not belong together."""
        if not isinstance(self.tokenizer, VQTokenizer):
            raise UserError("MAGE makes tokens; give the VQTokenizer that it was trained with.")
        model, tokenizer = self.model.config, self.tokenizer.config
        if model.num_codes != tokenizer.num_codes:
            raise UserError(
                f"the image generator makes {model.num_codes} codes, but the tokenizer has {tokenizer.num_codes}; use the "
                "tokenizer that the generator was trained with."
            )
        if tokenizer.in_channels != 3:
            raise UserError(
                f"the tokenizer makes images of {tokenizer.in_channels} channels, but a pipeline needs RGB."
            )
        flow = tokenizer.flow_decoder  # which draws one size only
        size = tokenizer.image_size if flow is None else flow["image_size"]
        side = size and size // self.tokenizer.factor
        if side and side != model.grid_size:
            raise UserError(
                f"the image generator makes a grid of {model.grid_size}x{model.grid_size} tokens, but the tokenizer was "
                f"trained for {side}x{side}; use the tokenizer that the generator was trained with."
            )
        if model.mask_token_id != (mask := self.scheduler.config.get("mask_token_id")):
            raise UserError(
                f"the image generator's mask token is {model.mask_token_id}, but the image scheduler's is {mask}; use the "
                "scheduler that was saved with the generator."
            )

    def defaults(self) -> dict[str, Any]:
        config = self.scheduler.config
        return {
            "num_inference_steps": min(config.num_inference_steps, self.model.num_tokens),
            "temperature": config.temperature,
            "guidance_schedule": "linear",
            "guidance_interval": [0.0, 1.0],
        }

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise `UserError` for more steps than tokens."""
        steps, tokens = settings["num_inference_steps"], self.model.num_tokens
        if steps is not None and steps > tokens:
            raise UserError(
                f"num_inference_steps is {steps}, but an image of this model has only {tokens} tokens; use {tokens} or fewer."
            )

    def generate(self, request: Request) -> Tensor:
        guiding = None if self.guiding_model is None else in_precision(self.guiding_model, request.precision)
        # All steps are launched as one, unless somebody looks at each.
        as_one = is_replaying() and self.model.device.type == "cuda"
        at_end = request.callback if as_one and not request.watched else None
        ids = generate_tokens(
            in_precision(self.model, request.precision),
            self.scheduler,
            batch_size=len(request.noise),
            representations=request.representations,
            class_labels=request.class_labels,
            num_inference_steps=request.num_inference_steps,
            guidance=request.guidance,
            guiding_model=guiding,
            temperature=request.temperature,
            generator=request.noise,
            exact=request.exact,
            callback=None if at_end is not None else request.callback,
        )
        if at_end is not None:
            for step in range(request.num_inference_steps):
                at_end(step, ids)
        return ids

    def decode(self, codes: Tensor, precision: Precision = "fp32") -> Tensor:
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise UserError("there is no tokenizer to decode tokens with; give the one that made them.")
        rows = rows_of_images(codes[0].numel() * tokenizer.factor**2)
        return in_blocks(lambda ids: tokenizer.decode(ids, precision), rows, codes)
