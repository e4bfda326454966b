"""SSLEncoder: parity of the preprocessing and standardisation, saving, pooling, feature maps, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F

from rcg.core.errors import UserError
from rcg.encoders.ssl_encoder import SSLEncoder, standardize
from tests.waiting import NoWaiting

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


def tiny_vit(**more: object) -> SSLEncoder:
    settings = {"arch": "vit_tiny_patch16_224", "arch_kwargs": VIT, "image_size": 16} | more
    return SSLEncoder(**settings)


def with_busy_head(encoder: SSLEncoder) -> SSLEncoder:
    """Give the head's BatchNorms statistics other than 0 and 1."""
    for name, tensor in encoder.head.state_dict().items():
        if "running" in name:
            tensor.copy_(torch.rand_like(tensor) * 0.2 + (0.9 if name.endswith("var") else -0.1))
    return encoder


def test_forward_is_normalise_resize_backbone_head_standardise() -> None:
    torch.manual_seed(0)
    encoder = with_busy_head(tiny_vit(head_layers=3, head_hidden_dim=20, head_dim=8))
    assert encoder.representation_dim == 8
    assert encoder.feature_dim == 24
    assert [m.affine for m in encoder.head.modules() if isinstance(m, torch.nn.BatchNorm1d)] == [True, True, False]
    assert all(m.bias is None for m in encoder.head.modules() if isinstance(m, torch.nn.Linear))
    images = torch.rand(3, 3, 21, 30)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    x = F.interpolate(x, size=(16, 16), mode="bicubic", align_corners=False, antialias=False)
    with torch.no_grad():
        h = encoder.head(encoder.backbone.forward_features(x)[:, 0])
        expected = (h - h.mean(1, keepdim=True)) / h.std(1, unbiased=True, keepdim=True)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-6, atol=1e-6)
        assert expected.std(0).mean() > 0.05  # the images differ
        resized_first = F.interpolate(images, size=(16, 16), mode="bicubic", antialias=True)
        assert (encoder(resized_first) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("arch", "kwargs", "size", "dim"),
    [
        ("resnet10t", {}, 64, 512),
        ("swin_s3_tiny_224", {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2]}, 64, 48),
        ("mobilenetv3_small_050", {}, 64, 1024),
        ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 2}, 28, 192),
    ],
)  # fmt: skip
def test_any_timm_model_saves_and_loads_exactly(
    arch: str, kwargs: dict[str, object], size: int, dim: int, tmp_path: Path
) -> None:
    encoder = SSLEncoder(arch, kwargs, image_size=size, pool="timm", mean=[0.1, 0.2, 0.3], antialias=True)
    encoder.save_pretrained(tmp_path)
    again = SSLEncoder.from_pretrained(tmp_path)
    images = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        state, loaded = encoder.state_dict(), again.state_dict()
        assert state.keys() == loaded.keys()
        assert all(torch.equal(state[key], loaded[key]) for key in state)
        torch.testing.assert_close(again(images), encoder(images), rtol=1e-5, atol=1e-5)
        assert encoder(images).shape == (2, dim) == (2, encoder.representation_dim)
        maps = encoder.feature_maps(images)
    assert len(maps) >= 2
    assert all(m.ndim == 4 and m.shape[0] == 2 for m in maps)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    assert again.config.antialias is True
    assert list(again.config.mean) == [0.1, 0.2, 0.3]


def test_pooling() -> None:
    images = torch.rand(2, 3, 16, 16)
    vit = tiny_vit(standardize=False)
    with torch.no_grad():
        tokens = vit.backbone.forward_features(vit.preprocess(images))
        assert torch.equal(vit(images), tokens[:, 0])
        averaging = tiny_vit(pool="avg", standardize=False)
        averaging.load_state_dict(vit.state_dict())
        torch.testing.assert_close(averaging(images), tokens[:, 1:].mean(1))
        cnn = SSLEncoder("resnet10t", image_size=64, pool="avg", standardize=False)
        timms = SSLEncoder("resnet10t", image_size=64, pool="timm", standardize=False)
        timms.load_state_dict(cnn.state_dict())
        torch.testing.assert_close(cnn(images), timms(images))
        swin = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2], "num_heads": [2]}
        channels_last = SSLEncoder("swin_s3_tiny_224", swin, image_size=64, pool="avg", standardize=False)
        assert channels_last(images).shape == (2, 24)


def test_parts_of_a_representation_stand_in_a_row_each_standardised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16)
    whole = with_busy_head(tiny_vit(head_layers=2, head_hidden_dim=20, head_dim=8))
    whole.save_pretrained(tmp_path)
    parts = SSLEncoder.from_pretrained(tmp_path, parts=["quarters", "projection", "features"])
    assert parts.representation_dim == 4 * 24 + 8 + 24
    with torch.no_grad():
        found = parts(images)
        tokens = whole.backbone.forward_features(whole.preprocess(images))
        maps = tokens[:, 1:].reshape(2, 4, 4, 24)  # row, column
        quarters = torch.cat(
            [maps[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((1, 2)) for r in (0, 1) for c in (0, 1)], dim=1
        )
        row = torch.cat([standardize(quarters), whole(images), standardize(whole.features(images))], dim=1)
    torch.testing.assert_close(found, standardize(row))
    torch.testing.assert_close(found, row, rtol=0.02, atol=0.02)
    parts.save_pretrained(tmp_path / "parts")
    assert torch.equal(SSLEncoder.from_pretrained(tmp_path / "parts")(images), found)


def test_quarters_of_a_feature_map_do_not_depend_on_its_layout() -> None:
    images = torch.rand(2, 3, 64, 64)
    cnn = SSLEncoder("resnet10t", image_size=64, pool="timm", standardize=False, parts=["quarters"])
    swin = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2], "num_heads": [2]}
    last = SSLEncoder("swin_s3_tiny_224", swin, image_size=64, pool="avg", standardize=False, parts=["quarters"])
    with torch.no_grad():
        found, upper_left = cnn(images), cnn.backbone.forward_features(cnn.preprocess(images))[:, :, 0, 0]
        assert torch.equal(found[:, : upper_left.shape[1]], upper_left)  # the map is 2 x 2
        channels_last = last.backbone.forward_features(last.preprocess(images))
        torch.testing.assert_close(last(images)[:, -24:], channels_last[:, 8:, 8:].mean((1, 2)))


def test_feature_maps_carry_gradient_and_obey_indices() -> None:
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    maps = tiny_vit().feature_maps(images, indices=[-1])
    assert [m.shape for m in maps] == [(1, 24, 4, 4)]
    maps[0].square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0


def test_from_timm_takes_preprocessing_and_a_checkpoint(tmp_path: Path) -> None:
    name, kwargs = "vit_tiny_patch16_224", {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}
    source = timm.create_model(name, **kwargs)  # with its classifier
    torch.save({"state_dict": source.state_dict(), "epoch": 3}, tmp_path / "a.pth")
    encoder = SSLEncoder.from_timm(name, checkpoint=tmp_path / "a.pth", arch_kwargs=kwargs, standardize=False)
    assert encoder.config.image_size == 32
    assert list(encoder.config.mean) == [0.5, 0.5, 0.5]
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = source.eval().forward_head(source.forward_features((images - 0.5) / 0.5), pre_logits=True)
        torch.testing.assert_close(encoder(images), expected)
    encoder = SSLEncoder.from_timm("resnet10t")
    assert encoder.config.image_size == 176
    assert list(encoder.config.mean) == pytest.approx([0.485, 0.456, 0.406])
    wrong = {k.replace("blocks.0.norm1", "blocks.0.nrom1"): v for k, v in source.state_dict().items()}
    torch.save(wrong, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"blocks\.0\.norm1\.weight.*nearest: blocks\.0\.nrom1\.weight"):
        SSLEncoder.from_timm(name, checkpoint=tmp_path / "b.pth", arch_kwargs=kwargs)
    with pytest.raises(UserError, match="exclude"):
        SSLEncoder.from_timm(name, pretrained=True, checkpoint=tmp_path / "a.pth")


def test_standardize_matches_its_definition_and_refuses_constants() -> None:
    h = torch.randn(4, 24, dtype=torch.float64) * 3 + 7
    out = standardize(h)
    torch.testing.assert_close(out.mean(1), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(out.var(1, unbiased=True), torch.ones(4, dtype=torch.float64))
    assert standardize(h.bfloat16()).dtype == torch.bfloat16
    bad = h.float().clone()
    bad[2] = 0.1
    with pytest.raises(UserError, match=r"image 2 .* constant"):
        standardize(bad)
    bad[1, 3] = float("nan")
    with pytest.raises(UserError, match=r"image 1 .* not finite"):
        standardize(bad)
    encoder = tiny_vit()
    torch.nn.init.zeros_(encoder.backbone.norm.weight)
    with pytest.raises(ValueError, match="constant"):
        encoder(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "vit_tiny_patch16_225", "arch_kwargs": {}}, "near names: .*vit_tiny_patch16_224"),
        ({"image_size": 20}, "built for 16 px but image_size is 20"),
        ({"arch_kwargs": VIT | {"img_size": [16, 32]}}, "built for 16 × 32 px but image_size is 16"),
        ({"arch_kwargs": VIT | {"no_such": 1}}, "cannot be built"),
        ({"arch_kwargs": VIT | {"num_heads": 0}}, "cannot be built"),
        ({"arch_kwargs": VIT | {"act_layer": "no_such"}}, "cannot be built"),
        ({"arch_kwargs": VIT | {"in_chans": 1}}, "in_chans is 1, but images have 3 channels"),
        ({"arch": "resnet10t", "arch_kwargs": {}}, "no class token"),
        ({"arch_kwargs": VIT | {"class_token": False, "reg_tokens": 4, "global_pool": "avg"}}, "no class token"),
        ({"pool": "max"}, "pool is 'max'"),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos'"),
        ({"std": [1.0, 0.0, 1.0]}, "every std above 0"),
        ({"head_layers": 2, "head_dim": 0}, "head_dim is 0"),
        ({"parts": []}, "at least one"),
        ({"parts": ["features", "features"]}, "each once"),
        ({"parts": ["tokens"]}, "parts"),
    ],
)
def test_unusable_settings_say_so(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_vit(**settings)


def test_unusable_images_say_so() -> None:
    encoder = tiny_vit()
    with pytest.raises(UserError, match="divide 8-bit ones by 255"):
        encoder(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"\[batch, 3, height, width\]"):
        encoder(torch.rand(3, 16, 16))


def test_preprocessing_does_not_wait_for_the_device() -> None:
    with NoWaiting():
        assert tiny_vit().preprocess(torch.empty(2, 3, 20, 20, device="meta")).shape == (2, 3, 16, 16)


def test_low_precision_and_the_house_loader(tmp_path: Path) -> None:
    from rcg.core.components import load_model

    torch.manual_seed(0)
    encoder = with_busy_head(tiny_vit(head_layers=3, head_hidden_dim=20, head_dim=8))
    encoder.save_pretrained(tmp_path)
    images = torch.rand(4, 3, 20, 20)
    with torch.no_grad():
        expected = encoder(images)
        assert torch.equal(load_model(SSLEncoder, tmp_path)(images), expected)
        half = load_model(SSLEncoder, tmp_path, torch_dtype=torch.bfloat16)(images)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.1 * expected.norm()
