"""What `rcg-eval` does, from Python. (The command itself: tests/scripts/test_eval.py.)"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.pictures import save_png
from rcg.eval.evaluate import evaluate
from rcg.eval.extractors import ModuleExtractor
from rcg.eval.images import PipelineImages
from tests.components import get_dummy_pipeline


class Pixels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, ::8, ::8].flatten(1)


@pytest.fixture
def extractor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleExtractor:
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "cache"))
    return ModuleExtractor("pixels", nn.Sequential(nn.AdaptiveAvgPool2d(16), Pixels()))


def folder(path: Path, count: int, seed: int) -> Path:
    g = np.random.default_rng(seed)
    for i in range(count):
        save_png(path / f"{i}.png", Image.fromarray(g.integers(0, 256, (16, 16, 3)).astype(np.uint8)))
    return path


def test_folders(extractor: ModuleExtractor, tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", 20, 0), folder(tmp_path / "other", 24, 1)
    notes: list[str] = []
    found = evaluate(one, other, ["fid", "kid"], extractor, device="cpu", on_note=notes.append)
    assert list(found["metrics"]) == ["frechet-pixels"]
    assert "at least 50" in found["unavailable"]["kid-pixels"]
    assert found["sources"] == {"generated": str(one), "reference": str(other)}
    assert found["counts"] == {"generated": 20, "reference": 24}
    assert found["notes"] == notes
    evaluate(one, other, ["isc", "fid"], extractor, device="cpu", on_note=notes.append)
    assert any("isc-pixels is left out" in note for note in notes)
    with pytest.raises(UserError, match="give --reference"):
        evaluate(one, None, ["fid"], extractor, device="cpu")


def test_a_pipeline(extractor: ModuleExtractor, tmp_path: Path) -> None:
    pipe = get_dummy_pipeline()
    images = PipelineImages(pipe, 7, seed=3, name="mine", guidance_scale=2.0)
    assert [len(batch) for batch in images.batches(5)] == [5, 2]
    found = evaluate(images, folder(tmp_path / "real", 9, 0), ["fid"], extractor, device="cpu", batch_size=5)
    assert found["counts"] == {"generated": 7, "reference": 9}
    assert found["sources"]["generated"] == "mine"
    assert found["pipeline"] == {"identity": pipe.identity(), "settings": images.settings, "seed": 3}
    assert images.settings["guidance_scale"] == 2.0
