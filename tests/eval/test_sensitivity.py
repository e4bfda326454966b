"""Every kind of damage moves the metrics that should see it, on the embedded images with small features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from rcg.data.sources import open_source
from rcg.eval.evaluate import Evaluator
from rcg.eval.extractors import ModuleExtractor
from rcg.eval.images import ImageSet, StreamImages

COUNT = 200
METRICS = ("fid", "kid", "prc", "dc", "mind", "vendi", "fld")


class Look(nn.Module):
    """A few colours, and how much detail there is where."""

    def forward(self, images: Tensor) -> Tensor:
        detail = (images[:, :, 1:, :-1] - images[:, :, :-1, 1:]).abs()
        parts = [nn.functional.adaptive_avg_pool2d(images, 2), 4 * nn.functional.adaptive_avg_pool2d(detail, 2)]
        return torch.cat([part.flatten(1) for part in parts], dim=1)


@pytest.fixture(scope="module")
def sets() -> dict[str, Tensor]:
    """Sets of their own images: to compare with, held out, clean, and a second clean one."""
    source = open_source(f"shapes:n={4 * COUNT},size=16,seed=3")
    pixels = torch.cat(list(ImageSet(source, "all").batches(COUNT)))
    names = ("reference", "held-out", "clean", "other")
    return dict(zip(names, (pixels[i::4] for i in range(4)), strict=True))


@pytest.fixture(scope="module")
def figures(sets: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    clean = sets["clean"]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * 25
    brightness = clean.float().mean((1, 2, 3))
    spoilt = {
        "clean": clean,
        "other": sets["other"],
        "blur": gaussian_blur(clean, [5, 5], [1.5, 1.5]),
        "noise": (clean + noise).round().clamp(0, 255).byte(),
        "nonsense": torch.randint(0, 256, clean.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)),
        "dropped": clean[brightness < brightness.median()].repeat(2, 1, 1, 1),
        "duplicates": clean[:10].repeat(20, 1, 1, 1),
        "copies": sets["reference"],
    }
    evaluator = Evaluator(ModuleExtractor("look", Look()), device="cpu")
    reference, held_out = (evaluator.make_stats(StreamImages([sets[name]])) for name in ("reference", "held-out"))
    return {
        name: {
            key.removesuffix("-look"): value
            for key, value in evaluator.evaluate(
                StreamImages([pixels]), reference=reference, metrics=METRICS, held_out=held_out
            )["metrics"].items()
        }
        for name, pixels in spoilt.items()
    }


@pytest.mark.parametrize("damage", ["blur", "noise", "dropped", "duplicates"])
@pytest.mark.parametrize("metric", ["frechet", "kid", "mind"])
def test_distances_see_all_of_it(figures: dict[str, dict[str, float]], damage: str, metric: str) -> None:
    clean = max(figures["clean"][metric], figures["other"][metric], 0)
    assert figures[damage][metric] > 2 * clean


def test_quality_and_variety_are_told_apart(figures: dict[str, dict[str, float]]) -> None:
    clean, nonsense = figures["clean"], figures["nonsense"]
    assert nonsense["precision"] < 0.1
    assert nonsense["density"] < 0.1
    for damage in ("dropped", "duplicates"):
        assert figures[damage]["recall"] < clean["recall"] - 0.4
        assert figures[damage]["coverage"] < clean["coverage"] - 0.2
        assert figures[damage]["precision"] > clean["precision"] - 0.15
    for damage in ("blur", "noise"):  # in these features such images are still near some real one, but near few
        assert figures[damage]["recall"] < clean["recall"] - 0.4
        assert figures[damage]["coverage"] < clean["coverage"] - 0.3
    assert figures["noise"]["density"] < clean["density"] - 0.2
    assert nonsense["vendi"] < clean["vendi"] - 0.5
    assert all(figures[damage]["fld"] > clean["fld"] + 10 for damage in ("blur", "noise", "dropped", "duplicates"))


def test_only_fld_sees_copies_of_training_images(figures: dict[str, dict[str, float]]) -> None:
    clean, copies = figures["clean"], figures["copies"]
    assert copies["fld"] > clean["fld"] + 50
    assert copies["frechet"] == pytest.approx(0, abs=1e-6)
    assert copies["precision"] == copies["recall"] == 1
    assert copies["coverage"] >= clean["coverage"]
