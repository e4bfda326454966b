"""The linear start against principal components and least squares as NumPy finds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.data.images import ImageDataset, to_unit
from rcg.data.sources import open_source
from rcg.image_gen.tokenizers.linear_start import SPREAD, start_linear
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer


def tokenizer(**changes: Any) -> VQTokenizer:
    torch.manual_seed(0)
    sizes = {"levels": (13, 7, 5), "num_codes": 455, "code_dim": 3, "patch_size": 2, "channel_multipliers": (1,)}
    return VQTokenizer(**{"base_channels": 8, "num_res_blocks": 1, "norm_groups": 4, **sizes, **changes})


def shapes(count: int = 24) -> Tensor:
    dataset = ImageDataset(open_source("shapes:n=24,size=16"), 16)
    return to_unit(dataset.batch(np.arange(count), np.zeros(count, np.uint64))["images"])


def squares(images: Tensor, side: int) -> np.ndarray:
    """All squares of `side` pixels of images [B,C,H,W], as rows."""
    cut = images.unfold(2, side, side).unfold(3, side, side)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).double().numpy()


@pytest.mark.parametrize(("multipliers", "side"), [((1,), 2), ((1, 1), 4)])
def test_latents_are_principal_components_and_codes_are_read_by_least_squares(
    multipliers: tuple[int, ...], side: int
) -> None:
    model, images = tokenizer(channel_multipliers=multipliers), shapes()
    start_linear(model, images)
    rows = squares(images, side)
    _, values, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    scores = (rows - rows.mean(0)) @ axes[:3].T / (values[:3] / len(rows) ** 0.5) * SPREAD
    with torch.no_grad():
        latents = model.encode_latents(images).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
        np.testing.assert_allclose(np.abs(latents), np.abs(scores), atol=1e-4)
        codes = model.quantize.lookup(model.encode(images)).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
        rebuilt = squares(model.decode_latents(model.quantize.lookup(model.encode(images))), side)
    design = np.concatenate([codes, np.ones((len(codes), 1))], 1)
    best = design @ np.linalg.lstsq(design, rows, rcond=None)[0]
    if side == 2:
        np.testing.assert_allclose(rebuilt, best, atol=1e-4)
    assert np.square(rebuilt - rows).mean() < 1.02 * np.square(best - rows).mean() < 0.4 * rows.var(0).mean()


def test_everything_still_learns() -> None:
    model, images = tokenizer(), shapes()
    start_linear(model, images)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(2):  # the last layers first, then those before them
        optimizer.zero_grad()
        rebuilt = model.decode_latents(model.quantize_latents(model.encode_latents(images)).latents)
        (rebuilt - images).abs().mean().backward()
        optimizer.step()
    assert all(not torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_numbers_beyond_those_of_a_square_and_a_codebook_that_is_not_learned_yet() -> None:
    model, images = tokenizer(levels=None, num_codes=40, code_dim=15), shapes()
    start_linear(model, images)
    with torch.no_grad():
        latents = model.encode_latents(images)
        assert float(latents[:, 12:].abs().max()) == 0
        torch.testing.assert_close(model.decode_latents(latents), images, atol=0.02, rtol=0)  # nothing is left out
    start_linear(model, torch.full((4, 3, 8, 8), 0.25))
    with torch.no_grad():
        grey = torch.full((1, 3, 8, 8), 0.25)
        torch.testing.assert_close(model.decode_latents(model.encode_latents(grey)), grey, atol=1e-3, rtol=0)


def test_it_needs_linear_paths() -> None:
    with pytest.raises(UserError, match="no linear paths"):
        start_linear(tokenizer(patch_size=1), shapes())
