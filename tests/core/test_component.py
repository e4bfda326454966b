"""Weights lie in memory as if the model had just been made, wherever they came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rcg import RCGPipeline, RepresentationMLP
from rcg.core import component
from rcg.core.component import ALIGNMENT, align_file, settle_weights
from rcg.core.errors import UserError
from rcg.image_gen.latent_dit.transformer import DiT
from rcg.image_gen.pixel_dit.transformer import PixelDiT
from tests.components import get_dummy_pipeline


def settled(module: nn.Module) -> bool:
    tensors = [*module.parameters(), *module.buffers()]
    assert tensors
    return all(
        t.data_ptr() % ALIGNMENT == 0 and t.stride() == torch.empty(t.shape, device="meta").stride()
        for t in tensors
        if t.numel()
    )


def test_odd_places_and_strides() -> None:
    model = nn.Conv2d(8, 8, 1)
    weight = model.weight.data
    odd = torch.empty(65)[1:]
    model.weight.data = odd.view(8, 8, 1, 1).copy_(weight).as_strided((8, 8, 1, 1), (8, 1, 8, 8))
    before = model.weight
    assert not settled(model)
    settle_weights(model)
    assert settled(model)
    assert model.weight is before  # optimisers and ties hold on to it
    assert torch.equal(model.weight, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_no_file_holds_is_loaded_in_the_dtype_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    image = torch.randn(1, 3, 8, 8)
    for model in (
        PixelDiT(image_size=8, patch_size=4, width=16, depth=1, num_heads=2, condition="none"),
        DiT(sample_size=8, in_channels=3, patch_size=4, width=16, depth=1, num_heads=2, condition="none"),
    ):
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path, torch_dtype=dtype).eval()
        assert loaded.positions.dtype == dtype
        assert loaded(image, 0.5).isfinite().all()


def test_saved_files_begin_aligned_and_hold_the_same(tmp_path: Path) -> None:
    for length in range(1, 9):  # names of other lengths make other headers
        tensors = {
            "w" * length: torch.randn(3, 5),
            "x" * length: torch.randn(16, 3),
            "i": torch.arange(4),
            "e": torch.ones(0),
        }
        save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
        align_file(tmp_path / "x.safetensors")
        raw = (tmp_path / "x.safetensors").read_bytes()
        assert (8 + int.from_bytes(raw[:8], "little")) % ALIGNMENT == 0
        again = load_file(tmp_path / "x.safetensors")
        assert tensors.keys() == again.keys()
        assert all(torch.equal(tensors[key], again[key]) for key in tensors)
        assert again["x" * length].data_ptr() % ALIGNMENT == 0
        with safe_open(tmp_path / "x.safetensors", "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    before = raw
    align_file(tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == before


def test_what_was_saved_here_need_not_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = RepresentationMLP(30, 64, 2)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    loaded = RepresentationMLP.from_pretrained(tmp_path)
    assert settled(loaded)
    monkeypatch.setattr(component, "settle_weights", lambda module: None)
    mapped = list(RepresentationMLP.from_pretrained(tmp_path).parameters())
    assert len(mapped) > 20
    assert all(p.data_ptr() % ALIGNMENT == 0 for p in mapped if p.nbytes % ALIGNMENT == 0)


@pytest.mark.parametrize("name", ["encoder", "rdm", "image_generator", "tokenizer"])
def test_loaded_models(name: str, tmp_path: Path) -> None:
    pipe = get_dummy_pipeline()
    pipe.save_pretrained(tmp_path)
    again = RCGPipeline.from_pretrained(tmp_path)
    assert settled(getattr(again, name))
    alone = type(getattr(pipe, name)).from_pretrained(tmp_path / name)
    assert settled(alone)
    assert type(alone).from_pretrained(tmp_path / name, output_loading_info=True)[1]["missing_keys"] == []


@pytest.mark.parametrize("name", ["nothere", "/nothere", "/not/there", "a/b/c", Path("nothere")])
def test_the_hub_is_not_asked_for_what_it_cannot_have(name: str | Path) -> None:
    with pytest.raises(UserError, match=f"there is no folder {name}; give one"):
        RepresentationMLP.from_pretrained(name)
