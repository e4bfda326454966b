"""The multi-positive contrastive loss (StableRep, arXiv 2306.00984, equations 2 and 3): one row of features against many.

Row i of the loss is the cross-entropy between p, uniform over the columns of the same identity, and the softmax q of the
scaled cosines. SimCLR and CLIP are special cases. Nothing of the size rows × columns outlives a block of rows: the
backward pass computes the cosines again, which costs a few per cent of an encoder's pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rcg.core.together import gather_rows, rank

ROWS = 1024
"""Rows whose cosines are in memory together."""


def _logits(rows: Tensor, columns: Tensor, scale: Tensor, start: int, own: int | None) -> Tensor:
    """scale · rows @ columnsᵀ of a block that starts at row `start`; a row's own column, if any, is −∞."""
    logits = (rows * scale) @ columns.T
    if own is not None:
        logits.diagonal(start + own).fill_(-torch.inf)
    return logits


def _positives(row_ids: Tensor, column_ids: Tensor, start: int, own: int | None) -> Tensor:
    """bool [rows, columns]: same identity, a row's own column left out."""
    same = row_ids[:, None] == column_ids[None, :]
    if own is not None:
        same.diagonal(start + own).fill_(False)
    return same


class _CrossEntropy(torch.autograd.Function):
    """Loss of each row, [N]; see `multi_positive_rows`."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, row_ids: Tensor, column_ids: Tensor, scale: Tensor, own: int | None
    ) -> Tensor:
        losses, norms = [], []
        for start in range(0, len(rows), ROWS):
            stop = start + ROWS
            logits = _logits(rows[start:stop], columns, scale, start, own)
            positive = _positives(row_ids[start:stop], column_ids, start, own)
            norm = logits.logsumexp(1)
            count = positive.sum(1)
            attracted = logits.masked_fill_(~positive, 0).sum(1) / count.clamp_min(1)
            losses.append(torch.where(count > 0, norm - attracted, 0))
            norms.append(norm)
        ctx.own = own
        ctx.save_for_backward(rows, columns, row_ids, column_ids, scale, torch.cat(norms))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradient.device.type, enabled=False):  # which may be on around `loss.backward()`
            return _CrossEntropy.slopes(ctx, gradient)

    @staticmethod
    def slopes(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of rows, columns and scale; the others have none."""
        rows, columns, row_ids, column_ids, scale, norms = ctx.saved_tensors
        d_rows, d_scale = torch.empty_like(rows), torch.zeros_like(scale)
        d_columns = torch.zeros_like(columns) if ctx.needs_input_grad[1] else None
        for start in range(0, len(rows), ROWS):
            stop = start + ROWS
            block = rows[start:stop]
            positive = _positives(row_ids[start:stop], column_ids, start, ctx.own)
            count = positive.sum(1, keepdim=True)
            weight = gradient[start:stop, None] * (count > 0)
            # ∂ loss / ∂ logits = q − p, for rows that have a positive
            slope = _logits(block, columns, scale, start, ctx.own).sub_(norms[start:stop, None]).exp_()
            slope.addcdiv_(positive.to(slope.dtype), count.clamp_min(1).to(slope.dtype), value=-1)
            slope = slope.masked_fill_(count == 0, 0).mul_(weight)
            towards = slope @ columns
            d_rows[start:stop] = towards * scale
            if d_columns is not None:
                d_columns.addmm_(slope.T, block * scale)
            d_scale += (towards * block).sum()
        return d_rows, d_columns, None, None, d_scale, None


def unit_rows(vectors: Tensor) -> Tensor:
    """Rows [N, D] brought to norm 1, in float32 or better, whatever autocast says."""
    with torch.autocast(vectors.device.type, enabled=False):
        return F.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=1)


def multi_positive_rows(
    rows: Tensor, columns: Tensor, row_ids: Tensor, column_ids: Tensor, scale: Tensor | float, own: int | None = None
) -> Tensor:
    """Cross-entropy of each row between its positives, equally weighted, and the softmax over columns.

    Args:
        rows: [N, D], normalised by the caller.
        columns: [M, D], normalised by the caller.
        row_ids, column_ids: int64 [N] and [M]; a column is a positive of a row where the two are equal.
        scale: what cosines are multiplied with, 1/τ; a scalar tensor is given its gradient.
        own: row i is column i + own itself, which is left out; None: no row is among the columns.

    Returns:
        [N]; a row without any positive contributes 0, and no gradient. Computed in float32, or float64 if given it.
    """
    with torch.autocast(rows.device.type, enabled=False):
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        # `full` fills the number in on the device, which a copy from here would wait for
        factor = scale.to(rows.device, dtype) if isinstance(scale, Tensor) else rows.new_full((), scale, dtype=dtype)
        return _CrossEntropy.apply(rows.to(dtype), columns.to(dtype), row_ids, column_ids, factor, own)


def multi_positive_loss(features: Tensor, identities: Tensor, temperature: float) -> Tensor:
    """Images of one identity (caption) are each other's positives; all others, of every process, are negatives.

    The positives are those of this very batch: nothing is remembered from one call to the next.

    Args:
        features: [N, D] of this process, normalised here.
        identities: int64 [N]: which caption an image belongs to, by identity and not by place in the batch, so that a
            caption that occurs twice is no negative of itself.
        temperature: τ.

    Returns:
        the mean over this process's rows; rows without a positive count as 0.
    """
    f = unit_rows(features)
    everyone, ids = gather_rows(f), gather_rows(identities)
    return multi_positive_rows(f, everyone, identities, ids, 1 / temperature, rank() * len(f)).mean()


def image_text_loss(
    images: Tensor, image_ids: Tensor, texts: Tensor, text_ids: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """CLIP's two losses (arXiv 2103.00020), with every image of a caption a positive of it.

    Args:
        images, texts: [N, D] and [M, D] of this process, normalised here.
        image_ids, text_ids: int64 [N] and [M], identities of captions.
        scale: scalar, what cosines are multiplied with.

    Returns:
        image to text and text to image, each the mean over this process's rows.
    """
    x, t = unit_rows(images), unit_rows(texts)
    to_text = multi_positive_rows(x, gather_rows(t), image_ids, gather_rows(text_ids), scale)
    to_image = multi_positive_rows(t, gather_rows(x), text_ids, gather_rows(image_ids), scale)
    return to_text.mean(), to_image.mean()
