"""Extractors other than the Inception, and running one over an image set."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from rcg.core.errors import UserError
from rcg.eval.extractors import ModuleExtractor, open_extractor
from rcg.eval.features import extract
from rcg.eval.timm_models import CLIP, DINOV2, clip_features, dinov2_features, resize_positions


class Means(nn.Module):
    """Mean and standard deviation of each colour, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, 7.0))

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.float32
        assert images.min() >= 0
        assert images.max() <= 1
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1) * self.weight


def some_images(n: int, size: int = 16) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def test_module_extractor_runs_in_batches() -> None:
    images = some_images(10)
    extractor = ModuleExtractor("means", Means())
    assert (extractor.name, extractor.dim, extractor.has_logits) == ("means", 6, False)
    whole = extract(extractor, [images])
    parts = extract(extractor, iter(images.split(3)))
    assert whole.logits is None
    assert len(parts) == 10
    assert (parts.features == whole.features).all()  # to the bit: a CPU always computes 16 at a time
    assert whole.features == pytest.approx(Means()(images.float() / 255).detach().numpy(), rel=1e-6)


def test_a_module_is_asked_where_it_lies() -> None:
    elsewhere = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 8)).to("meta")  # as on a GPU
    assert ModuleExtractor("linear", elsewhere, weights_hash="-").dim == 8


def test_weights_hash_follows_the_weights() -> None:
    a, b = Means(), Means()
    assert ModuleExtractor("m", a).weights_hash == ModuleExtractor("m", b).weights_hash
    b.weight.data[0] += 1
    assert ModuleExtractor("m", a).weights_hash != ModuleExtractor("m", b).weights_hash


def test_what_extract_refuses() -> None:
    module = Means()
    extractor = ModuleExtractor("means", module)
    with pytest.raises(UserError, match="no images"):
        extract(extractor, [])
    with pytest.raises(ValueError, match="uint8"):
        extract(extractor, [torch.rand(1, 3, 8, 8)])
    module.weight.data[0] = float("inf")
    with pytest.raises(UserError, match="non-finite features for 4 images"):
        extract(extractor, [some_images(4)])
    with pytest.raises(UserError, match=r"must give \[B, D\]"):
        ModuleExtractor("map", nn.Identity())


def test_bf16_only_when_asked() -> None:
    extractor = ModuleExtractor("linear", nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 8)))
    images = [some_images(4, 64)]
    exact = extract(extractor, images).features
    rough = extract(extractor, images, precision="bf16").features
    again = extract(extractor, images).features
    assert (exact == again).all()
    assert (rough != exact).any()
    assert rough == pytest.approx(exact, abs=0.05)


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("timm") / "test_vit.pth"
    torch.save(timm.create_model("test_vit", num_classes=1000).state_dict(), file)
    return file


def test_timm_model_is_timms_own(timm_file: Path) -> None:
    extractor = open_extractor(f"timm:test_vit:{timm_file}")
    model = timm.create_model("test_vit", num_classes=1000).eval()
    model.load_state_dict(torch.load(timm_file, weights_only=True))
    size = resolve_model_data_config(model)["input_size"][-1]
    images = some_images(2, size)
    transform = create_transform(**{**resolve_model_data_config(model), "crop_pct": 1.0})
    with torch.inference_mode():
        x = torch.stack([transform(to_pil_image(image)) for image in images])
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
        features, logits, spatial = extractor(images)
    assert logits is spatial is None
    assert extractor.name == "timm:test_vit"
    assert extractor.resize == f"to {size} px, bicubic with antialias"
    assert extractor.dim == expected.shape[1]
    assert torch.allclose(features, expected, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        assert extractor(some_images(2, 20))[0].shape == expected.shape  # other sizes are resized


def test_timm_weights_must_fit(timm_file: Path, tmp_path: Path) -> None:
    state = torch.load(timm_file, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "norm.weight"}, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"lacks norm\.weight"):
        open_extractor("timm:test_vit", tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"Invalid pretrained tag"):
        open_extractor(f"timm:test_vit.no_such_weights:{timm_file}")
    with pytest.raises(UserError, match=r"names a weights file already"):
        open_extractor(f"timm:test_vit:{timm_file}", timm_file)


def test_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no model 'vit_tinny'.*vit_"):
        open_extractor("timm:vit_tinny")
    for spec in ("resnet", "encoder", "timm:", "fid"):
        with pytest.raises(
            UserError, match=r"Unknown extractor.*inception, inception-768, dinov2, clip, encoder:DIR or timm:"
        ):
            open_extractor(spec)
    with pytest.raises(
        UserError, match=r"in Python give rcg\.recipe\.judging\.open_features\('encoder:runs/e', None, None\)"
    ):
        open_extractor("encoder:runs/e")  # or the sentence would name as a choice what it refuses


def test_published_weights_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"published weights of timm:test_vit cannot be had.*timm:test_vit:FILE"):
        open_extractor("timm:test_vit")


def test_dinov2_sees_224_px_as_its_own_program_does(timm_file: Path) -> None:
    model = dinov2_features(timm_file, name="test_vit", size=96)  # of the size in the box: 160 px
    assert model.size == (96, 96)
    with torch.inference_mode():
        assert model(torch.rand(2, 3, 40, 50)).shape == (2, model.model.num_features)
    ramp = torch.arange(10.0)
    places = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij"), dim=-1).reshape(1, 100, 2)
    token = torch.full((1, 1, 2), -7.0)
    small = resize_positions(torch.cat([token, places], dim=1), 6)
    assert small.shape == (1, 37, 2)
    assert (small[:, 0] == -7).all()

    def cubic(at: float) -> float:  # PyTorch's kernel (a = -0.75) on the ramp
        low, a = int(at), -0.75
        found = 0.0
        for i in range(low - 1, low + 3):
            t = abs(at - i)
            weight = (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            found += weight * i
        return found

    expected = torch.tensor([cubic((i + 0.5) * 10 / 6.1 - 0.5) for i in range(1, 5)])  # scaled by 6.1 / 10, not 6 / 10
    assert torch.allclose(small[0, 1:].reshape(6, 6, 2)[1:5, 2, 0], expected, atol=1e-4)


def test_clip_gives_directions(timm_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = clip_features(timm_file, name="test_vit")
    images = torch.rand(2, 3, 160, 160)
    whole = timm.create_model("test_vit", num_classes=1000).eval()
    whole.load_state_dict(torch.load(timm_file, weights_only=True))
    with torch.inference_mode():
        found = model(images)
        expected = whole((images - model.mean) / model.std)
    assert torch.allclose(found, expected / expected.norm(dim=1, keepdim=True), atol=1e-5)
    assert model.resize == "to 160 px, bicubic without antialias"
    assert timm.get_pretrained_cfg(CLIP).num_classes == 768  # its head is CLIP's projection
    assert timm.get_pretrained_cfg(DINOV2).input_size[1] == 518
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("clip", "dinov2"):
        with pytest.raises(UserError, match=r"there is no weights file .*no\.pth"):
            open_extractor(name, Path("no.pth"))


def test_fp32_is_not_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen: list[bool] = []

    class Asking(Means):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return super().forward(images)

    extractor = ModuleExtractor("means", Asking())
    seen.clear()
    for precision in ("fp32", "bf16"):
        extract(extractor, [some_images(2)], precision=precision)
        assert torch.backends.cudnn.allow_tf32
    assert seen == [False, True]
