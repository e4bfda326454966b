"""The transformer: shapes, its start at zero, conditions, refusals, precision, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rcg.core.errors import UserError
from rcg.core.precision import in_precision
from rcg.image_gen.latent_dit.transformer import DiT, positions
from tests.image_gen.latent_dit.golden import relative
from tests.image_gen.latent_dit.models import CONDITIONS, batch, given, tiny


@pytest.mark.parametrize(("sample_size", "patch_size", "channels"), [(8, 2, 4), (12, 3, 1), (16, 8, 3), (6, 1, 16)])
@pytest.mark.parametrize("learn_sigma", [False, True])
@torch.no_grad()
def test_shapes_and_where_latents_go(sample_size: int, patch_size: int, channels: int, learn_sigma: bool) -> None:
    sizes = {"sample_size": sample_size, "patch_size": patch_size, "in_channels": channels}
    model = tiny("none", **sizes, learn_sigma=learn_sigma)
    x = torch.randn(2, channels, sample_size, sample_size)
    assert model.num_tokens == (sample_size // patch_size) ** 2
    assert model(x, 500).shape == (2, channels * (1 + learn_sigma), sample_size, sample_size)
    for block in model.blocks:  # without attention, a patch is made from itself alone
        block.attn.proj.weight.zero_()
    other = x.clone()
    other[:, :, :patch_size, -patch_size:] += 1
    changed = (model(x, 500) != model(other, 500)).any(dim=1)[0]
    expected = torch.zeros(sample_size, sample_size, dtype=torch.bool)
    expected[:patch_size, -patch_size:] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_a_new_model_predicts_zero_and_its_blocks_change_nothing(condition: str) -> None:
    model = tiny(condition, stirred=False)
    assert not model(torch.randn(3, 4, 8, 8), torch.randint(1000, (3,)), **given(condition, 3)).any()
    tokens, vector = torch.randn(3, 16, 16), torch.randn(3, 16)
    assert torch.equal(model.blocks[0](tokens, vector), tokens)


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_time_and_condition_matter_sample_by_sample(condition: str) -> None:
    model, x = tiny(condition), torch.randn(3, 4, 8, 8)
    at_half = model(x, 500, **given(condition, 3))
    mixed = model(x, torch.tensor([500, 510, 500]), **given(condition, 3))
    assert torch.allclose(mixed[[0, 2]], at_half[[0, 2]], atol=1e-6)
    assert not torch.allclose(mixed[1], at_half[1], atol=1e-4)
    if condition != "none":
        dropped = model(x, 500, **given(condition, 3), drop_condition=torch.tensor([False, True, False]))
        assert torch.allclose(dropped[[0, 2]], at_half[[0, 2]], atol=1e-6)
        assert torch.allclose(dropped[1], model(x, 500)[1], atol=1e-6)
        assert not torch.allclose(dropped[1], at_half[1], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sample_size": 9}, "sample_size is 9, which patches of 2 do not divide"),
        ({"width": 18, "num_heads": 4}, "width is 18, which 4 heads do not divide"),
        ({"width": 18}, "width is 18, which 4 does not divide"),
        ({"patch_size": 0}, "patch_size is 0, but it must be at least 1"),
        ({"condition": "text"}, "condition is 'text'"),
        ({"representation_dim": None}, "needs representation_dim"),
        ({"condition": "class", "num_classes": None}, "needs num_classes"),
    ],
)
def test_models_that_cannot_be(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tiny(**{"condition": "representation", **arguments})


@pytest.mark.parametrize(
    ("condition", "arguments", "says"),
    [
        (
            "none",
            given("representation", 2),
            "representations were given, but this generator was trained with .*'none'",
        ),
        ("representation", given("representation", 3), r"representations have shape \(3, 6\).* needs \(2, 6\)"),
        ("none", {"sample": torch.zeros(2, 4, 8, 9)}, r"shape \[2, 4, 8, 9\], but this generator needs \[B, 4, 8, 8\]"),
    ],
)
def test_inputs_that_do_not_fit(condition: str, arguments: dict[str, torch.Tensor], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tiny(condition)(**{"sample": torch.zeros(2, 4, 8, 8), "timestep": 5, **arguments})


def test_positions_count_columns_first() -> None:
    table = positions(16, 4)
    assert torch.equal(table[:4, :8], table[4:8, :8])  # the same columns in two rows
    assert torch.equal(table[::4, 8:][1], table[5, 8:])
    assert torch.allclose(table[1, 0], torch.tensor(1.0).sin())


def _gradients(model: DiT, bf16: bool) -> torch.Tensor:
    model.zero_grad()
    data, drop = batch("representation", 8), torch.arange(8) == 3
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        x = data["latents"]
        out = model(x, torch.linspace(0, 999, 8), representations=data["representations"], drop_condition=drop)
    out.float().square().mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_gradients_under_bf16_autocast_are_near_those_of_fp32() -> None:
    model = tiny(width=64).train()
    fp32 = _gradients(model, bf16=False)
    assert len(fp32) == sum(p.numel() for p in model.parameters())  # all parameters are reached
    assert relative(_gradients(model, bf16=True), fp32) < 0.04


@torch.no_grad()
def test_the_bf16_copy_is_near_and_keeps_the_ends_in_fp32() -> None:
    model, x = tiny(width=64), torch.randn(4, 4, 8, 8)
    half = in_precision(model, "bf16")
    dtypes = {name.split(".")[0]: p.dtype for name, p in half.named_parameters()}
    kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert kept == {"patch_embed", "time_embed", "condition_embed", "head"}
    assert relative(half(x, 300, **given("representation", 4)), model(x, 300, **given("representation", 4))) < 0.02


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_a_saved_model_computes_the_same(condition: str, tmp_path: Path) -> None:
    model, x = tiny(condition), torch.randn(2, 4, 8, 8)
    model.save_pretrained(tmp_path)
    loaded = DiT.from_pretrained(tmp_path)
    assert not loaded.training
    assert torch.equal(loaded(x, 300, **given(condition, 2)), model(x, 300, **given(condition, 2)))
