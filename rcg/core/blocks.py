"""Forward passes whose bits do not depend on the batch that a sample came in. A leaf: anyone may import it."""

from __future__ import annotations

from collections.abc import Callable

import torch

BLOCK_PIXELS = 128 * 128
"""About so many pixels pass through an encoder or a tokenizer together on a CPU."""


def rows_of_images(pixels: int) -> int:
    """Rows for `in_blocks` of images of so many pixels."""
    return BLOCK_PIXELS // pixels


def rows_of_block(rows: int, count: int, device: torch.device) -> int:
    """Rows that are evaluated together: on a CPU the power of two at or below `rows`, elsewhere all `count`."""
    return 1 << (max(rows, 1).bit_length() - 1) if device.type == "cpu" else count


def in_blocks(function: Callable[..., torch.Tensor], rows: int, *batches: torch.Tensor | None) -> torch.Tensor:
    """`function` of a batch, on a CPU always so many rows at a time.

    Matrix and convolution kernels round differently at other batch sizes, and one last bit can flip a token, which
    changes the whole image. In blocks of one size, a row's bits depend on that row alone (for one number of threads).
    Blocks that fill the kernels cost nothing; a short block is padded by repeating its last row.

    Args:
        function: of tensors with a leading batch axis, row by row.
        rows: about so many rows make a block; the power of two below is taken, at least 1.
        batches: arguments of `function`, [B, …] each, or None.

    Returns:
        [B, …], as `function` returns it.
    """
    given = [batch for batch in batches if batch is not None]
    count = len(given[0])
    if given[0].device.type != "cpu":
        return function(*batches)
    rows = rows_of_block(rows, count, given[0].device)
    outputs = []
    for start in range(0, count, rows):
        index = torch.arange(start, start + rows).clamp_max(count - 1)
        outputs.append(function(*(None if batch is None else batch[index] for batch in batches)))
    return torch.cat(outputs)[:count]
