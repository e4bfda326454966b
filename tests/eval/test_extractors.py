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
from rcg.eval.extractors import ModuleExtractor, extract, open_extractor


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
    whole = extract(extractor, [images], progress=False)
    parts = extract(extractor, iter(images.split(3)), total=10, progress=False)
    assert whole.logits is None
    assert len(parts) == 10
    assert torch.allclose(torch.from_numpy(parts.features), torch.from_numpy(whole.features), rtol=1e-6)
    assert whole.features == pytest.approx(Means()(images.float() / 255).detach().numpy(), rel=1e-6)


def test_weights_hash_follows_the_weights() -> None:
    a, b = Means(), Means()
    assert ModuleExtractor("m", a).weights_hash == ModuleExtractor("m", b).weights_hash
    b.weight.data[0] += 1
    assert ModuleExtractor("m", a).weights_hash != ModuleExtractor("m", b).weights_hash


def test_what_extract_refuses() -> None:
    module = Means()
    extractor = ModuleExtractor("means", module)
    with pytest.raises(UserError, match="no images"):
        extract(extractor, [], progress=False)
    with pytest.raises(ValueError, match="uint8"):
        extract(extractor, [torch.rand(1, 3, 8, 8)], progress=False)
    module.weight.data[0] = float("inf")
    with pytest.raises(UserError, match="non-finite features for 4 images"):
        extract(extractor, [some_images(4)], progress=False)
    with pytest.raises(UserError, match=r"must give \[B, D\]"):
        ModuleExtractor("map", nn.Identity())


def test_bf16_only_when_asked() -> None:
    extractor = ModuleExtractor("linear", nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 8)))
    images = [some_images(4, 64)]
    exact = extract(extractor, images, progress=False).features
    rough = extract(extractor, images, precision="bf16", progress=False).features
    again = extract(extractor, images, progress=False).features
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
        features, logits = extractor(images)
    assert logits is None
    assert extractor.name == "timm:test_vit"
    assert extractor.dim == expected.shape[1]
    assert torch.allclose(features, expected, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        assert extractor(some_images(2, 20))[0].shape == expected.shape  # other sizes are resized


def test_timm_weights_must_fit(timm_file: Path, tmp_path: Path) -> None:
    state = torch.load(timm_file, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "norm.weight"}, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"lacks norm\.weight"):
        open_extractor("timm:test_vit", tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"names a weights file already"):
        open_extractor(f"timm:test_vit:{timm_file}", timm_file)


def test_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no model 'vit_tinny'.*vit_"):
        open_extractor("timm:vit_tinny")
    for spec in ("resnet", "encoder", "timm:", "fid"):
        with pytest.raises(UserError, match=r"Unknown extractor.*inception, inception-768, encoder:DIR or timm:"):
            open_extractor(spec)


def test_published_weights_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"published weights of timm:test_vit cannot be had.*timm:test_vit:FILE"):
        open_extractor("timm:test_vit")
