"""Finite scalar quantisation against the paper's definition, written number by number, over the whole implicit codebook."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.image_gen.tokenizers.quantizers import FiniteScalarQuantizer, VectorQuantizer, count_codes

LEVELS = [(8, 5, 5, 5), (7, 5, 5), (4, 3), (4,), (3, 3, 3, 3, 3), (256, 3)]


def naive_bound(z: float, levels: int) -> float:
    half = (levels - 1) * (1 - 1e-3) / 2
    offset = 0.5 if levels % 2 == 0 else 0.0
    return half * math.tanh(z + math.atanh(offset / half)) - offset


def naive_code(vector: list[float], levels: tuple[int, ...]) -> tuple[list[float], int]:
    """The code of one latent and its id."""
    whole = [round(naive_bound(z, size)) for z, size in zip(vector, levels, strict=True)]
    code = [w / (size // 2) for w, size in zip(whole, levels, strict=True)]
    number, base = 0, 1
    for w, size in zip(whole, levels, strict=True):
        number += (w + size // 2) * base
        base *= size
    return code, number


def grid(vectors: Tensor) -> Tensor:
    """Vectors [N,D] as latents [1,D,1,N]."""
    return vectors.t()[None, :, None]


@pytest.mark.parametrize("levels", LEVELS)
def test_equals_the_definition(levels: tuple[int, ...]) -> None:
    quantize = FiniteScalarQuantizer(levels)
    vectors = torch.randn(200, len(levels), generator=torch.Generator().manual_seed(0)) * 2
    out = quantize(grid(vectors))
    codes, ids = zip(*(naive_code(v, levels) for v in vectors.tolist()), strict=True)
    assert out.ids.flatten().tolist() == list(ids)
    torch.testing.assert_close(out.latents, grid(torch.tensor(codes)))
    assert torch.equal(quantize.nearest(vectors), out.ids.flatten())
    assert float(out.commitment_loss) == 0
    if levels[-1] == 5:
        assert len(set(ids)) > 50


@pytest.mark.parametrize("levels", LEVELS)
def test_ids_and_codes_are_one_to_one_over_the_whole_codebook(levels: tuple[int, ...]) -> None:
    quantize = FiniteScalarQuantizer(levels)
    count = math.prod(levels)
    assert quantize.num_codes == count
    codes = quantize.lookup(torch.arange(count).reshape(1, 1, count))[0, :, 0].t()
    values = [[(i - size // 2) / (size // 2) for i in range(size)] for size in levels]
    expected = torch.tensor([code[::-1] for code in itertools.product(*values[::-1])])  # the first number runs fastest
    torch.testing.assert_close(codes, expected)
    assert len(codes.unique(dim=0)) == count
    assert float(codes.min()) == -1
    assert float(codes.max()) <= 1
    # a latent of every code: the bound undone
    sizes = torch.tensor(levels, dtype=torch.float64)
    half, offset = (sizes - 1) * (1 - 1e-3) / 2, 0.5 * (sizes % 2 == 0)
    whole = codes.double() * (sizes // 2)
    latents = torch.atanh((whole + offset).clamp(-half * 0.999999, half * 0.999999) / half) - torch.atanh(offset / half)
    assert quantize.nearest(latents.float()).tolist() == list(range(count))
    # and however far out it lies, an id of the codebook
    far = torch.tensor(list(itertools.product((-1e9, 0.0, 1e9, math.nan, math.inf), repeat=min(len(levels), 4))))
    far = torch.cat([far, torch.zeros(len(far), len(levels) - far.shape[1])], 1)
    assert 0 <= int(quantize.nearest(far).min()) <= int(quantize.nearest(far).max()) < count


def test_rounding_is_the_identity_to_the_gradient() -> None:
    quantize = FiniteScalarQuantizer((8, 5))
    latents = torch.randn(3, 2, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(quantize(latents).latents.sum(), latents)
    step = 1e-4
    for index in itertools.product(range(3), range(2), range(2), range(2)):
        size = (8, 5)[index[1]]
        z = latents[index].item()
        slope = (naive_bound(z + step, size) - naive_bound(z - step, size)) / (2 * step) / (size // 2)
        assert float(gradient[index]) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (256,)])
def test_half_precision_does_not_move_the_grid(levels: tuple[int, ...]) -> None:
    quantize = FiniteScalarQuantizer(levels)
    vectors = torch.randn(500, len(levels)) * 3
    ids = quantize.nearest(vectors)
    codes = quantize.lookup(ids.reshape(1, 1, -1))
    half = FiniteScalarQuantizer(levels).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(half.nearest(vectors), ids)
        assert torch.equal(half.lookup(ids.reshape(1, 1, -1)), codes)


def test_both_quantisers_speak_one_language() -> None:
    latents = torch.randn(2, 3, 2, 4)
    for quantize in (VectorQuantizer(30, 3), FiniteScalarQuantizer((3, 3, 3))):
        out = quantize(latents.to(torch.bfloat16))
        assert (out.latents.shape, out.latents.dtype) == (latents.shape, torch.float32)
        assert (out.ids.shape, out.ids.dtype) == ((2, 2, 4), torch.int64)
        torch.testing.assert_close(quantize.lookup(out.ids), out.latents)
        assert int(out.ids.max()) < 30


def test_levels_that_cannot_be() -> None:
    assert count_codes([8, 5, 5, 5]) == 1000
    with pytest.raises(UserError, match="levels is empty"):
        count_codes([])
    with pytest.raises(UserError, match=r"levels 3 3 3 3 3 3 3 3 … make more than 2\^24"):
        count_codes([3] * 20)
