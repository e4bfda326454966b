"""Forward passes whose bits do not depend on the batch that a sample came in. A leaf: anyone may import it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


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
    rows = 1 << (max(rows, 1).bit_length() - 1)
    outputs = []
    for start in range(0, count, rows):
        index = torch.arange(start, start + rows).clamp_max(count - 1)
        outputs.append(function(*(None if batch is None else batch[index] for batch in batches)))
    return torch.cat(outputs)[:count]


class InBlocks:
    """An image generator (`MageTransformer`) that is evaluated by `in_blocks`."""

    def __init__(self, model: torch.nn.Module, rows: int) -> None:
        self.model = model
        self.rows = rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(
        self,
        ids: torch.Tensor,
        representations: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        drop_condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [B, N, K]; see `MageTransformer.forward`."""
        return in_blocks(self.model, self.rows, ids, representations, class_labels, drop_condition)
