"""The tokenizer against a second, naive implementation, and against the reference's values where they are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.files import encoding_hash, model_hash
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer
from rcg.published.convert import convert, open_file

GOLDEN = Path(__file__).parents[2] / "golden/keys"
SHARED = Path(__file__).parents[3].parent / "shared" / "golden"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the reference's values are not at hand")

SIZES: list[dict[str, Any]] = [
    {"base_channels": 8, "channel_multipliers": (1, 2, 4), "num_res_blocks": 1, "norm_groups": 4},
    {"base_channels": 8, "channel_multipliers": (1, 1, 2, 4), "num_res_blocks": 2, "norm_groups": 8},
    {"base_channels": 4, "channel_multipliers": (1, 1, 2, 2, 4), "num_res_blocks": 2, "norm_groups": 2},
    {"base_channels": 6, "channel_multipliers": (2, 1), "num_res_blocks": 1, "norm_groups": 3},
]


def tiny(**changes: Any) -> VQTokenizer:
    torch.manual_seed(0)
    model = VQTokenizer(**{**SIZES[0], "num_codes": 40, "code_dim": 5, **changes}).eval()
    for parameter in model.parameters():  # norms too, so that every weight matters
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    return model


# ---------------------------------------------------------------- the naive implementation


def naive_norm_silu(x: Tensor, w: dict[str, Tensor], key: str, groups: int) -> Tensor:
    b, c, height, width = x.shape
    g = x.reshape(b, groups, -1)
    mean = g.mean(2, keepdim=True)
    g = (g - mean) / ((g - mean).pow(2).mean(2, keepdim=True) + 1e-6).sqrt()
    x = g.reshape(b, c, height, width) * w[key + ".weight"].view(1, c, 1, 1) + w[key + ".bias"].view(1, c, 1, 1)
    return x * torch.sigmoid(x)


def naive_block(x: Tensor, w: dict[str, Tensor], key: str, groups: int) -> Tensor:
    h = F.conv2d(naive_norm_silu(x, w, key + ".norm1", groups), w[key + ".conv1.weight"], padding=1)
    h = F.conv2d(naive_norm_silu(h, w, key + ".norm2", groups), w[key + ".conv2.weight"], padding=1)
    if key + ".nin_shortcut.weight" in w:
        return torch.einsum("oi,bihw->bohw", w[key + ".nin_shortcut.weight"][:, :, 0, 0], h) + h
    return x + h


def naive_encode(x: Tensor, w: dict[str, Tensor], levels: int, blocks: int, groups: int) -> Tensor:
    x = F.conv2d(x, w["encoder.conv_in.weight"], padding=1)
    for level in range(levels):
        for block in range(blocks):
            x = naive_block(x, w, f"encoder.down.{level}.block.{block}", groups)
        if level < levels - 1:
            b, c, height, width = x.shape
            x = x.reshape(b, c, height // 2, 2, width // 2, 2).mean((3, 5))
    x = naive_block(naive_block(x, w, "encoder.mid.block_1", groups), w, "encoder.mid.block_2", groups)
    x = naive_norm_silu(x, w, "encoder.norm_out", groups)
    return F.conv2d(x, w["encoder.conv_out.weight"], w["encoder.conv_out.bias"])


def naive_decode(ids: Tensor, w: dict[str, Tensor], levels: int, blocks: int, groups: int) -> Tensor:
    x = w["quantize.embedding.weight"][ids].permute(0, 3, 1, 2)
    x = F.conv2d(x, w["decoder.conv_in.weight"], w["decoder.conv_in.bias"], padding=1)
    x = naive_block(naive_block(x, w, "decoder.mid.block_1", groups), w, "decoder.mid.block_2", groups)
    for level in reversed(range(levels)):
        for block in range(blocks):
            x = naive_block(x, w, f"decoder.up.{level}.block.{block}", groups)
        if level > 0:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            key = f"decoder.up.{level}.upsample.conv"
            x = F.conv2d(x, w[key + ".weight"], w[key + ".bias"], padding=1)
    x = naive_norm_silu(x, w, "decoder.norm_out", groups)
    return F.conv2d(x, w["decoder.conv_out.weight"], w["decoder.conv_out.bias"], padding=1)


@pytest.mark.parametrize("sizes", SIZES, ids=["f4", "f8", "f16", "f2"])
def test_equals_the_naive_implementation(sizes: dict[str, Any]) -> None:
    model = tiny(**sizes).double()
    levels, blocks, groups = len(sizes["channel_multipliers"]), sizes["num_res_blocks"], sizes["norm_groups"]
    assert model.factor == 2 ** (levels - 1)
    w = dict(model.state_dict())
    images = torch.rand(2, 3, 2 * model.factor, 3 * model.factor, dtype=torch.float64)
    with torch.no_grad():
        latents = naive_encode(images, w, levels, blocks, groups)
        codes = w["quantize.embedding.weight"]  # spread them as the latents are, so that many are chosen
        codes.copy_(latents.mean((0, 2, 3)) + latents.std((0, 2, 3)) * torch.randn_like(codes))
        torch.testing.assert_close(model.encode_latents(images), latents.float(), rtol=1e-5, atol=1e-6)
        distances = (latents.permute(0, 2, 3, 1)[..., None, :] - w["quantize.embedding.weight"]).pow(2).sum(-1)
        ids = model.encode(images)
        assert ids.shape == (2, 2, 3)
        assert ids.dtype == torch.int64
        assert torch.equal(ids, distances.argmin(-1))
        assert len(ids.unique()) > 3
        expected = naive_decode(ids, w, levels, blocks, groups)
        decoded = model.decode_latents(model.quantize.lookup(ids))
        torch.testing.assert_close(decoded, expected.float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.decode(ids), expected.clamp(0, 1).float(), rtol=1e-5, atol=1e-6)


def test_patches_are_channels_with_a_linear_path_past_the_networks() -> None:
    model = tiny(patch_size=2, channel_multipliers=(1, 2)).double()
    images = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    patches = torch.zeros(2, 12, 4, 6, dtype=torch.float64)
    for c in range(3):
        for y in range(2):
            for x in range(2):
                patches[:, 4 * c + 2 * y + x] = images[:, c, y::2, x::2]
    w = model.state_dict()
    with torch.no_grad():
        latents = naive_encode(patches, w, 2, 1, 4)
        squares = patches.reshape(2, 12, 2, 2, 3, 2)
        linear = torch.einsum("dcyx,bchywx->bdhw", w["encoder.shortcut.weight"], squares)
        latents = latents + linear + w["encoder.shortcut.bias"].view(1, -1, 1, 1)
        torch.testing.assert_close(model.encode_latents(images), latents.float(), rtol=1e-5, atol=1e-6)
        ids = model.encode(images)
        assert model.factor == 4
        assert ids.shape == (2, 2, 3)
        codes = model.quantize.lookup(ids).double()
        linear = torch.einsum("dcyx,bdhw->bchywx", w["decoder.shortcut.weight"], codes).reshape(2, 12, 4, 6)
        seen = naive_decode(ids, w, 2, 1, 4) + linear + w["decoder.shortcut.bias"].view(1, -1, 1, 1)
        expected = torch.zeros_like(images)
        for c in range(3):
            for y in range(2):
                for x in range(2):
                    expected[:, c, y::2, x::2] = seen[:, 4 * c + 2 * y + x]
        torch.testing.assert_close(model.decode_latents(codes.float()), expected.float(), rtol=1e-5, atol=1e-6)


def test_quantising_gives_commitment_and_straight_through_gradient() -> None:
    model = tiny().train()
    latents = model.encode_latents(torch.rand(2, 3, 8, 8))
    out = model.quantize_latents(latents)
    codes = model.quantize.lookup(out.ids)
    torch.testing.assert_close(out.commitment_loss, (latents - codes).pow(2).mean())
    # the encoder's gradient through the decoder is the decoder's gradient at the codes, unchanged
    leaf = codes.detach().clone().requires_grad_()
    (at_codes,) = torch.autograd.grad(model.decode_latents(leaf).square().sum(), leaf)
    weight = model.encoder.conv_in.weight
    (through,) = torch.autograd.grad(model.decode_latents(out.latents).square().sum(), weight, retain_graph=True)
    (expected,) = torch.autograd.grad(latents, weight, at_codes)
    torch.testing.assert_close(through, expected, rtol=1e-4, atol=1e-5)
    # the codebook learns from neither
    loss = out.commitment_loss + out.latents.sum()
    assert torch.autograd.grad(loss, model.quantize.embedding.weight, allow_unused=True) == (None,)


def test_nearest_code_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    quantize = tiny().quantize
    vectors = torch.randn(333, 5)
    whole = quantize.nearest(vectors)
    monkeypatch.setattr("rcg.image_gen.tokenizers.quantizers._DISTANCES_AT_ONCE", 40 * 7)  # blocks of 7
    assert torch.equal(quantize.nearest(vectors), whole)
    assert torch.equal(whole, torch.cdist(vectors, quantize.embedding.weight).argmin(1))


def test_quantiser_is_fp32_under_autocast() -> None:
    model = tiny()
    codes = torch.stack([torch.full((5,), 1.0 + i / 256) for i in range(40)])  # apart by less than bf16 can tell
    model.quantize.embedding.weight.data.copy_(codes)
    latents = codes[[3, 17, 30]].t().reshape(1, 5, 1, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized = model.quantize_latents(latents)
        assert model.encode_latents(torch.rand(1, 3, 8, 8)).dtype == torch.float32
    assert quantized.ids.tolist() == [[[3, 17, 30]]]
    assert quantized.latents.dtype == torch.float32


def test_memory_layout_of_the_images_does_not_matter() -> None:
    """PyTorch's fp32 channels-last GroupNorm is inexact on CPUs; images from numpy come in that layout."""
    model = tiny(norm_groups=8)
    images = torch.rand(2, 32, 32, 3).permute(0, 3, 1, 2)
    assert torch.equal(model.encode_latents(images), model.encode_latents(images.contiguous()))


FINITE: dict[str, Any] = {
    "levels": (4, 3, 3),
    "num_codes": 36,
    "code_dim": 3,
    "patch_size": 2,
    "channel_multipliers": (2, 1),
}


def test_finite_scalar_codes_in_the_model() -> None:
    model = tiny(**FINITE)
    assert not any(k.startswith("quantize") for k in model.state_dict())
    images = torch.rand(2, 3, 8, 8)
    out = model.quantize_latents(model.encode_latents(images))
    assert torch.equal(out.ids, model.encode(images))
    torch.testing.assert_close(out.latents, model.quantize.lookup(out.ids))
    model.decode_latents(out.latents).sum().backward()
    assert float(model.encoder.conv_in.weight.grad.abs().sum()) > 0
    whole = torch.arange(36).reshape(9, 2, 2)
    assert model.decode(whole).shape == (9, 3, 8, 8)
    with pytest.raises(UserError, match=r"\[0, 35\]"):
        model.decode(whole + 1)
    assert model.encode(torch.full((1, 3, 4, 4), torch.nan)).tolist() == [
        [[int(model.quantize.nearest(torch.zeros(1, 3)))]]
    ]


@pytest.mark.parametrize("changes", [{}, FINITE])
def test_saves_and_loads(changes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(image_size=16, **changes)
    model.save_pretrained(tmp_path)
    loaded = VQTokenizer.from_pretrained(tmp_path)
    assert model_hash(loaded) == model_hash(model)
    assert loaded.factor == 4
    assert loaded.config.image_size == 16
    assert torch.equal(loaded.encode(torch.ones(1, 3, 8, 8) / 3), model.encode(torch.ones(1, 3, 8, 8) / 3))
    assert torch.equal(loaded.decode(torch.arange(4).reshape(1, 2, 2)), model.decode(torch.arange(4).reshape(1, 2, 2)))
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}


def test_what_a_later_version_added_does_not_change_the_tokens_name() -> None:
    model = tiny()
    before = {k: v for k, v in model.config.items() if k not in ("levels", "patch_size")}
    assert encoding_hash(VQTokenizer.from_config(before)) != encoding_hash(model)  # other weights
    loaded = VQTokenizer.from_config(before)
    loaded.load_state_dict(model.state_dict())
    assert encoding_hash(loaded) == encoding_hash(model)
    one, two = (tiny(levels=v, num_codes=36, code_dim=3) for v in ((4, 3, 3), (3, 4, 3)))
    assert encoding_hash(one) != encoding_hash(two)


def test_the_published_size_has_the_official_parameters() -> None:
    with init_empty_weights():
        model = VQTokenizer()
    lines = (GOLDEN / "vqgan_base.txt").read_text().splitlines()
    official = {key: shape for key, shape, _ in (line.split("\t") for line in lines)}
    assert {k: str(tuple(v.shape)) for k, v in model.state_dict().items()} == official


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.encode(torch.rand(1, 3, 10, 8)), "multiples of 4"),
        (lambda m: m.encode(torch.rand(1, 1, 8, 8)), "float images"),
        (lambda m: m.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "float images"),
        (lambda m: m.decode(torch.full((1, 2, 2), 40)), r"\[0, 39\]"),
        (lambda m: m.decode(torch.full((1, 2, 2), -1)), r"\[0, 39\]"),
        (lambda m: m.decode(torch.zeros(1, 4, dtype=torch.int64)), "integers of shape"),
        (lambda m: VQTokenizer(base_channels=30), "norm_groups 32 does not divide"),
        (lambda m: VQTokenizer(image_size=40), "not a multiple"),
        (lambda m: VQTokenizer(num_codes=0), "at least 1"),
        (
            lambda m: VQTokenizer(levels=(8, 5, 5, 5)),
            r"num_codes is 1024 and code_dim 256, but levels \[8, 5, 5, 5\] make 1000",
        ),
        (lambda m: VQTokenizer(levels=(), num_codes=1, code_dim=1), "levels is empty"),
        (
            lambda m: VQTokenizer(levels=(5, 2), num_codes=10, code_dim=2),
            r"levels\[1\] is 2, but it must be at least 3",
        ),
        (lambda m: VQTokenizer(levels=(256, 256, 256, 3), num_codes=2**24, code_dim=4), "more than 2\\^24"),
        (lambda m: VQTokenizer(patch_size=0), "at least 1"),
        (lambda m: VQTokenizer(patch_size=3, image_size=32), "not a multiple of the tokenizer's factor 48"),
        (lambda m: tiny(patch_size=2).encode(torch.rand(1, 3, 12, 8)), "multiples of 8"),
    ],
)
def test_mistakes_are_user_errors(call: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        call(tiny())


# ---------------------------------------------------------------- the reference's values


@needs_shared
def test_golden_values() -> None:
    model = convert(open_file(SHARED / "checkpoints" / "vqgan_jax_strongaug.ckpt")).model
    assert list(model.config.channel_multipliers) == [1, 1, 2, 2, 4]
    gold = np.load(SHARED / "vqgan.npz")
    images = torch.from_numpy(np.load(SHARED / "encoder.npz")["images_u8"]).permute(0, 3, 1, 2) / 255

    def close(ours: Tensor, key: str) -> None:
        theirs = torch.from_numpy(gold[key])
        assert float((ours - theirs).norm() / theirs.norm()) <= 1e-5, key

    taps: dict[str, Tensor] = {}
    for name, module in (
        ("dec_conv_in_0", model.decoder.conv_in),
        ("dec_mid_0", model.decoder.mid),
        ("dec_up4_0", model.decoder.up[4]),
    ):
        module.register_forward_hook(lambda _m, _i, out, name=name: taps.__setitem__(name, out))
    with torch.no_grad():
        close(model.encode_latents(images), "z")
        out = model.quantize_latents(model.encode_latents(images))
        clear = gold["top2_gap"] > 1e-3
        assert clear.all()
        np.testing.assert_array_equal(out.ids.flatten(1).numpy(), gold["indices"])
        close(model.quantize.lookup(out.ids), "quant")
        assert 1.25 * float(out.commitment_loss) == pytest.approx(float(gold["emb_loss"]), rel=1e-5)
        close(model.decode_latents(out.latents)[:1], "recon")
        ids = torch.from_numpy(gold["ids"]).reshape(2, 16, 16)
        close(model.quantize.lookup(ids), "ids_zq")
        close(model.decode_latents(model.quantize.lookup(ids))[:1], "ids_decoded")
        for name, tap in taps.items():
            close(tap[:1], name)
        truncated = (model.decode(ids) * 255).permute(0, 2, 3, 1).to(torch.uint8)
    assert np.abs(truncated.numpy().astype(int) - gold["ids_decoded_u8_rgb"]).max() <= 1


def test_what_ids_stand_for_is_fixed_with_levels_only() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"base_channels": 16, "channel_multipliers": (1,), "num_res_blocks": 1, "norm_groups": 8}
    tokenizer = VQTokenizer(**sizes, num_codes=15, code_dim=2, levels=(5, 3))
    codes = tokenizer.fixed_codes()
    assert codes is not None
    ids = torch.randint(15, (2, 3, 3))
    assert torch.equal(codes[ids].permute(0, 3, 1, 2), tokenizer.quantize.lookup(ids))
    assert VQTokenizer(**sizes, num_codes=15, code_dim=2).fixed_codes() is None
