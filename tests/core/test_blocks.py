"""Forward passes in blocks: the same rows, bit for bit, in any batch."""

from __future__ import annotations

import pytest
import torch

from rcg.core.blocks import in_blocks


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 100])
def test_blocks_have_one_size(rows: int) -> None:
    sizes = []

    def function(x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        assert y is None
        sizes.append(len(x))
        return x * 2

    x = torch.arange(14.0).reshape(7, 2)
    assert torch.equal(in_blocks(function, rows, x, None), x * 2)
    size = {0: 1, 1: 1, 3: 2, 4: 4, 100: 64}[rows]
    assert sizes == [size] * -(-7 // size)


def test_bits_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(67, 133), torch.nn.GELU(), torch.nn.Linear(133, 67))
    x = torch.randn(23, 9, 67)
    with torch.no_grad():
        whole = in_blocks(model, 4, x)
        for rows in ([0], [22], [5, 3], list(range(22, -1, -1)), [7] * 6):
            assert torch.equal(in_blocks(model, 4, x[rows]), whole[rows])
