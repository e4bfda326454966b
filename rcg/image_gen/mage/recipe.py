"""MAGE from nothing: the flags that are its own, and what they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcg.core.errors import UserError
from rcg.core.schema import Codes, Depth, MlpRatio, NonNegative, Positive, Share, ShareBelowOne, Size

if TYPE_CHECKING:
    from rcg.image_gen.mage.objective import MageObjective
    from rcg.image_gen.protocol import Task

SAMPLING_STEPS = 20


@dataclass
class MageRecipe:
    """Sizes, objective and sampler of a new MAGE; see `rcg.image_gen.protocol.Recipe`."""

    num_codes: Codes | None = None
    """With a cache and without --tokenizer: number of the tokenizer's codes."""
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
    mask_ratio_std: Positive = 0.25
    """Its standard deviation."""
    mask_ratio_min: ShareBelowOne = 0.5
    """Least masked share; this share of the tokens is not shown to the encoder at all."""
    label_smoothing: ShareBelowOne = 0.1
    """Label smoothing of the cross-entropy."""
    sampling_steps: Size | None = None
    """Steps of the exported sampler (default: 20, or one a token if there are fewer)."""
    temperature: NonNegative = 6.0
    """Choice temperature of the exported sampler (paper: 6 for B, 11 for L)."""

    def objective(self, task: Task) -> MageObjective:
        """A new model, ready to be trained."""
        from rcg.image_gen.mage.objective import MageObjective
        from rcg.image_gen.mage.scheduler import MaskGITScheduler
        from rcg.image_gen.mage.transformer import MageTransformer
        from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer

        if task.tokenizer is not None and self.num_codes is not None:
            raise UserError("--num-codes is known from --tokenizer; leave it out.")
        num_codes = self.num_codes if task.tokenizer is None else task.tokenizer.config.num_codes  # type: ignore[union-attr]
        if num_codes is None:
            raise UserError("the number of codes is not known; add --tokenizer DIR (or --num-codes).")
        model = MageTransformer(
            grid_size=_side(task.codes_shape),
            num_codes=num_codes,
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            decoder_depth=self.decoder_depth,
            decoder_num_heads=self.decoder_num_heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            condition_dropout=self.condition_dropout,
            **task.condition_arguments(),
            mask_ratio_min=self.mask_ratio_min,
        )
        if isinstance(task.tokenizer, VQTokenizer) and (codes := task.tokenizer.fixed_codes()) is not None:
            model.place_words(codes)
        steps = self.sampling_steps or min(SAMPLING_STEPS, model.num_tokens)
        if steps > model.num_tokens:
            raise UserError(f"--sampling-steps is {steps}, but an image has only {model.num_tokens} tokens; use fewer.")
        scheduler = MaskGITScheduler(model.config["mask_token_id"], steps, self.temperature)
        settings = (self.mask_ratio_mean, self.mask_ratio_std, self.label_smoothing)
        return MageObjective(model, *settings, scheduler=scheduler, tokenizer=task.tokenizer)


def _side(shape: tuple[int, ...]) -> int:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise UserError(
            f"the tokens form a grid of {' x '.join(map(str, shape))}, but MAGE works on square ones; use square images."
        )
    return shape[0]
