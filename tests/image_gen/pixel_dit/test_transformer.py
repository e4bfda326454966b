"""The transformer: shapes, its start at zero, conditions, refusals, precision, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rcg.core.errors import UserError
from rcg.core.precision import in_precision
from rcg.image_gen.pixel_dit.layers import Block, ConvLevel, SelfAttention, add_scaled
from rcg.image_gen.pixel_dit.transformer import PixelDiT
from tests.image_gen.pixel_dit.models import CONDITIONS, batch, distance, given, tiny


@pytest.mark.parametrize(("image_size", "patch_size", "channels"), [(8, 2, 3), (12, 3, 1), (16, 8, 4), (10, 5, 3)])
@torch.no_grad()
def test_shapes_and_where_pixels_go(image_size: int, patch_size: int, channels: int) -> None:
    model = tiny("none", image_size=image_size, patch_size=patch_size, in_channels=channels)
    x = torch.randn(2, channels, image_size, image_size)
    assert model.num_tokens == (image_size // patch_size) ** 2
    assert model(x, 0.5).shape == x.shape
    for block in model.blocks:  # without attention, a patch is made from itself alone
        block.attn.proj.weight.zero_()
    other = x.clone()
    other[:, :, :patch_size, :patch_size] += 1
    changed = (model(x, 0.5) != model(other, 0.5)).any(dim=1)[0]
    expected = torch.zeros(image_size, image_size, dtype=torch.bool)
    expected[:patch_size, :patch_size] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_a_new_model_predicts_zero_and_its_blocks_change_nothing(condition: str) -> None:
    model = tiny(condition, stirred=False)
    assert not model(torch.randn(3, 3, 8, 8), torch.rand(3), **given(condition, 3)).any()
    tokens, vector = torch.randn(3, 16, 16), torch.randn(3, 16)
    assert torch.equal(model.blocks[0](tokens, vector), tokens)


@pytest.mark.parametrize(("patch_size", "channels"), [(2, [8]), (4, [4]), (4, [8, 12])])
@torch.no_grad()
def test_convolutional_levels_see_their_neighbours_and_lie_around_the_transformer(
    patch_size: int, channels: list[int]
) -> None:
    model = tiny("none", image_size=32, patch_size=patch_size, conv_channels=channels)
    x = torch.randn(2, 3, 32, 32)
    assert model.num_tokens == (32 // patch_size) ** 2
    assert model(x, 0.5).shape == x.shape
    finest = patch_size // 2 ** len(channels)
    other = x.clone()
    other[:, :, 16, 16] += 1
    for level in model.levels:  # nothing from below: the finest level alone sees two blocks of two places each way
        level.up.weight.zero_()
    seen = (model(x, 0.5) != model(other, 0.5)).any(dim=1)[0].nonzero()
    assert (seen.min() - 16, seen.max() - 16) == (-4 * finest, 4 * finest + finest - 1)
    new = tiny("none", stirred=False, image_size=32, patch_size=patch_size, conv_channels=channels)
    maps, vector = torch.randn(3, (32 // finest) ** 2, channels[0]), torch.randn(3, 16)
    assert torch.equal(new.levels[0].before(maps, vector), maps)


@torch.no_grad()
def test_halving_and_doubling_keep_places() -> None:
    level = ConvLevel(2, 8, 4, 16)
    torch.nn.init.zeros_(level.before.modulation.weight)
    torch.nn.init.zeros_(level.after.modulation.weight)
    torch.nn.init.zeros_(level.before.modulation.bias)
    torch.nn.init.zeros_(level.after.modulation.bias)
    torch.nn.init.eye_(level.down.weight)
    torch.nn.init.zeros_(level.down.bias)
    torch.nn.init.eye_(level.up.weight)
    x, vector = torch.randn(3, 16, 2), torch.randn(3, 16)
    kept, squares = level.descend(x, vector)
    assert torch.equal(kept, x)
    assert torch.equal(squares[:, 0].view(3, 2, 2, 2), x.view(3, 4, 4, 2)[:, :2, :2])
    assert torch.equal(level.ascend(squares, torch.zeros_like(x), vector), x)


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_time_and_condition_matter_sample_by_sample(condition: str) -> None:
    model, x = tiny(condition), torch.randn(3, 3, 8, 8)
    at_half = model(x, 0.5, **given(condition, 3))
    mixed = model(x, torch.tensor([0.5, 0.51, 0.5]), **given(condition, 3))
    assert torch.allclose(mixed[[0, 2]], at_half[[0, 2]], atol=1e-6)
    assert not torch.allclose(mixed[1], at_half[1], atol=1e-4)
    if condition != "none":
        dropped = model(x, 0.5, **given(condition, 3), drop_condition=torch.tensor([False, True, False]))
        assert torch.allclose(dropped[[0, 2]], at_half[[0, 2]], atol=1e-6)
        assert torch.allclose(dropped[1], model(x, 0.5)[1], atol=1e-6)
        assert not torch.allclose(dropped[1], at_half[1], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"image_size": 9}, "image_size is 9, which patches of 2 pixels do not divide"),
        ({"width": 18, "num_heads": 4}, "width is 18, which 4 heads do not divide"),
        (
            {"patch_size": 6, "image_size": 12, "conv_channels": [4, 4]},
            "patch_size is 6, which 2 levels of convolutions",
        ),
        ({"conv_channels": [0]}, "conv_channels"),
        ({"width": 18}, "width is 18, which 4 does not divide"),
        ({"patch_size": 1}, "patch_size is 1, but it must be at least 2"),
        ({"dropout": 1.0}, r"dropout is 1.0, but it must lie in \[0, 1\)"),
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
        (
            "representation",
            given("class", 2),
            "class labels were given, but .* trained with condition 'representation'",
        ),
        ("representation", given("representation", 3), r"representations have shape \(3, 6\).* needs \(2, 6\)"),
        ("class", {"class_labels": torch.zeros(2, 1, dtype=torch.int64)}, r"class labels have shape \(2, 1\)"),
        ("none", {"sample": torch.zeros(2, 3, 8, 9)}, r"shape \[2, 3, 8, 9\], but this generator needs \[B, 3, 8, 8\]"),
    ],
)
def test_inputs_that_do_not_fit(condition: str, arguments: dict[str, torch.Tensor], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tiny(condition)(**{"sample": torch.zeros(2, 3, 8, 8), "timestep": 0.5, **arguments})


def test_a_model_without_null_class_needs_labels() -> None:
    model = tiny("class", condition_dropout=0.0)
    assert model.condition_embed.num_embeddings == 3
    with pytest.raises(UserError, match="give class labels"):
        model(torch.zeros(2, 3, 8, 8), 0.5)


def test_gradients_of_the_modulation() -> None:
    torch.manual_seed(0)
    for tokens in (1, 4):
        base, row, full = (torch.randn(2, n, 3, dtype=torch.float64, requires_grad=True) for n in (tokens, 1, 4))
        assert torch.allclose(add_scaled(base, row, full), base + row * full, rtol=1e-12)
        assert torch.autograd.gradcheck(add_scaled, (base, row, full))


@pytest.mark.parametrize("bf16", [False, True])
def test_quick_attention_equals_the_fused_one(bf16: bool) -> None:
    torch.manual_seed(0)
    attention, x = SelfAttention(32, 4, 3, 0.0), torch.randn(3, 9, 32)
    torch.nn.init.normal_(attention.offsets.relative_position_bias_table)
    with torch.no_grad():
        fused = attention(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        quick = attention(x)
    assert quick.grad_fn is not None
    assert distance(quick, fused) < (2e-2 if bf16 else 1e-6)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model, x = tiny("none", dropout=0.5), torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x, 0.5), model(x, 0.5))
    model.train()
    assert not torch.equal(model(x, 0.5), model(x, 0.5))


def _gradients(model: PixelDiT, bf16: bool) -> torch.Tensor:
    model.zero_grad()
    data, generator = batch("representation", 8, 16), torch.Generator().manual_seed(3)
    x, drop = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) == 3
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        clean = model(x, torch.linspace(0, 1, 8), representations=data["representations"], drop_condition=drop)
        loss = (clean.float() - data["images"] / 127.5 + 1).square().mean()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_gradients_under_bf16_autocast_are_near_those_of_fp32() -> None:
    model = tiny(image_size=16, patch_size=4, width=64, num_heads=2).train()
    fp32 = _gradients(model, bf16=False)
    assert len(fp32) == sum(p.numel() for p in model.parameters())  # all parameters are reached
    assert distance(_gradients(model, bf16=True), fp32) < 0.03


@torch.no_grad()
def test_the_bf16_copy_is_near_and_keeps_the_ends_in_fp32() -> None:
    model, x = tiny(image_size=16, patch_size=4, width=64), torch.randn(4, 3, 16, 16)
    half = in_precision(model, "bf16")
    dtypes = {name.split(".")[0]: p.dtype for name, p in half.named_parameters()}
    kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert kept == {"patch_embed", "time_embed", "condition_embed", "head"}
    assert half(x, 0.3, **given("representation", 4)).dtype == torch.float32
    assert distance(half(x, 0.3, **given("representation", 4)), model(x, 0.3, **given("representation", 4))) < 0.02


@torch.no_grad()
def test_a_block_is_what_its_docstring_says() -> None:
    torch.manual_seed(0)
    block, x, vector = Block(16, 2, 2, 2.0, 0.0), torch.randn(2, 4, 16), torch.randn(2, 16)
    torch.nn.init.normal_(block.modulation.weight, std=0.1)
    b1, s1, g1, b2, s2, g2 = block.modulation(vector)[:, None].chunk(6, dim=-1)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0)

    expected = x + g1 * block.attn(norm(x) * (1 + s1) + b1)
    expected = expected + g2 * block.mlp(norm(expected) * (1 + s2) + b2)
    assert torch.allclose(block(x, vector), expected, atol=1e-4)


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_a_saved_model_computes_the_same(condition: str, tmp_path: Path) -> None:
    model, x = tiny(condition), torch.randn(2, 3, 8, 8)
    model.save_pretrained(tmp_path)
    loaded = PixelDiT.from_pretrained(tmp_path)
    assert not loaded.training
    assert torch.equal(loaded(x, 0.3, **given(condition, 2)), model(x, 0.3, **given(condition, 2)))
