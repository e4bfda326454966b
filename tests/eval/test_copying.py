"""Near-copies and C_T: against plain loops, and on planted copies of training images."""

from __future__ import annotations

import io
import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.pictures import to_pil
from rcg.data.sources import open_source
from rcg.eval.copying import LEAST_IN_CELL, cell_count, cells_of, data_copying, near_copies, rank_z
from rcg.eval.evaluate import Evaluator
from rcg.eval.extractors import ModuleExtractor
from rcg.eval.images import ImageSet, StreamImages


def draw(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, size=count)


def naive_z(ours: np.ndarray, theirs: np.ndarray) -> float:
    larger = sum((a > b) + (a == b) / 2 for a, b in product(ours, theirs))
    n, m = len(ours), len(theirs)
    values = np.concatenate([ours, theirs]).tolist()
    ties = sum(values.count(v) ** 3 - values.count(v) for v in set(values))
    total = n + m
    return (larger - n * m / 2) / math.sqrt(n * m / 12 * (total + 1 - ties / (total * (total - 1))))


@pytest.mark.parametrize("digits", [8, 0])
def test_the_rank_statistic_is_that_of_all_pairs(digits: int) -> None:
    ours, theirs = draw(0, 31).round(digits), (draw(1, 40) + 0.3).round(digits)
    assert rank_z(ours, theirs) == pytest.approx(naive_z(ours, theirs), abs=1e-12)
    assert rank_z(ours, theirs) == pytest.approx(-rank_z(theirs, ours), abs=1e-12)
    assert rank_z(np.ones(5), np.ones(4)) == 0


def test_ct_is_the_mean_of_the_cells_that_count() -> None:
    g = np.random.default_rng(0)
    ours, theirs = draw(1, 200), draw(2, 260)
    cells, others = g.integers(0, 4, 200), g.integers(0, 4, 260)
    cells[cells == 3] = np.where(np.arange((cells == 3).sum()) < LEAST_IN_CELL - 1, 3, 0)  # too few of ours in cell 3
    found, settings = data_copying(ours, theirs, cells, others)
    weights = [(others == c).sum() for c in range(3)]
    scores = [naive_z(ours[cells == c], theirs[others == c]) for c in range(3)]
    assert found["ct"] == pytest.approx(np.average(scores, weights=weights), abs=1e-12)
    assert (settings["cells"], settings["cells_left_out"]) == (3, 1)
    assert settings["lowest"] == pytest.approx(min(scores))
    with pytest.raises(UserError, match="at least 20"):
        data_copying(ours[:5], theirs, cells[:5], others)


def test_ct_of_new_images_has_the_deviation_that_is_told() -> None:
    cells = np.arange(400) % 4
    drawn = [data_copying(draw(2 * i, 400), draw(2 * i + 1, 400), cells, cells) for i in range(200)]
    assert np.std([found["ct"] for found, _ in drawn]) == pytest.approx(drawn[0][1]["deviation"], rel=0.15)


def test_cells_are_those_of_the_nearest_mean() -> None:
    train = np.concatenate([np.random.default_rng(i).normal(9 * i, 1, (50, 3)) for i in range(3)]).astype(np.float32)
    (cells,) = cells_of(train, [train], 3, seed=0)
    assert [len(set(part)) for part in cells.reshape(3, 50)] == [1, 1, 1]
    assert len(set(cells)) == 3
    assert cells_of(train, [train[:4]], 1, seed=0)[0].tolist() == [0, 0, 0, 0]
    assert [cell_count(m, 10**5) for m in (10, 250, 10**5)] == [1, 2, 50]


def test_near_copies_are_counted_below_the_quantile() -> None:
    held_out = np.arange(1.0, 200.0)  # 199 of them
    ours = np.array([0.5, 1.5, 1.99, 2.0, 2.01, 150.0])
    found, settings = near_copies(ours, held_out, quantile=0.01)
    assert settings["threshold"] == 2.0
    assert settings["expected"] == pytest.approx(0.01)
    assert found["copies"] == 3 / 6
    with pytest.raises(UserError, match="at least 99 held-out"):
        near_copies(ours, held_out[:98], quantile=0.01)
    assert near_copies(ours, held_out[:99], quantile=0.01)[1]["threshold"] == 1.0


def test_the_p_value_holds_for_new_images() -> None:
    def p(seed: int) -> float:
        told: float = near_copies(draw(seed, 100), draw(10**6 + seed, 300), quantile=0.05)[1]["p_value"]
        return told

    values = np.array([p(seed) for seed in range(1000)])
    assert (values <= 0.05).mean() == pytest.approx(0.05, abs=0.025)
    assert (values <= 0.5).mean() < 0.55


class Look(nn.Module):
    """Coarse colours and edges: 60 numbers."""

    def forward(self, images: Tensor) -> Tensor:
        edges = (images[:, :, 1:, 1:] - images[:, :, :-1, :-1]).abs()
        parts = [nn.functional.adaptive_avg_pool2d(images, 4), nn.functional.adaptive_avg_pool2d(edges, 2)]
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def jpeg(images: Tensor) -> Tensor:
    def again(picture: Image.Image) -> np.ndarray:
        data = io.BytesIO()
        picture.save(data, format="JPEG", quality=90)
        return np.asarray(Image.open(data))

    return torch.from_numpy(np.stack([again(p) for p in to_pil(images)])).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def sets() -> dict[str, Tensor]:
    source = open_source("shapes:n=1400,size=16,seed=3")
    pixels = torch.cat(list(ImageSet(source, "all").batches(200)))
    train, rest = pixels[::2], pixels[1::2]
    fresh, held_out = rest[:300], rest[300:]
    copied = torch.cat([fresh[:150], jpeg(train[:300:2])])
    return {"train": train, "held-out": held_out, "fresh": fresh, "copied": copied}


def score(sets: dict[str, Tensor], name: str, **more: Any) -> dict[str, Any]:
    evaluator = Evaluator(ModuleExtractor("look", Look()), device="cpu", batch_size=more.get("batch_size"))
    return evaluator.evaluate(
        StreamImages([sets[name]], name=name),
        metrics=["copies", "ct", "fld"],
        held_out=StreamImages([sets["held-out"]]),
        train=StreamImages([sets["train"]], name="seen"),
    )


def test_planted_copies_are_caught(sets: dict[str, Tensor]) -> None:
    found = score(sets, "copied")
    assert 0.45 < found["metrics"]["copies-look"] < 0.55
    assert found["settings"]["copies-look"]["p_value"] < 1e-10
    assert found["settings"]["copies-look"]["train"] == 700
    ct, settings = found["metrics"]["ct-look"], found["settings"]["ct-look"]
    assert ct < -3
    assert ct < -6 * settings["deviation"]
    assert sum("copies" in note for note in found["notes"]) == 2
    assert (found["counts"]["train"], found["sources"]["train"]) == (700, "seen")
    again = score(sets, "copied", batch_size=7)
    assert again["metrics"] == found["metrics"]


def test_fresh_images_are_not(sets: dict[str, Tensor]) -> None:
    found = score(sets, "fresh")
    assert found["metrics"]["copies-look"] < 0.03
    assert found["settings"]["copies-look"]["p_value"] > 0.01
    assert abs(found["metrics"]["ct-look"]) < 3 * found["settings"]["ct-look"]["deviation"]
    assert not [note for note in found["notes"] if "copies" in note]


def test_the_reference_may_be_the_training_images(sets: dict[str, Tensor]) -> None:
    """It is measured once, after the generated ones; the figures are the same."""
    evaluator = Evaluator(ModuleExtractor("look", Look()), device="cpu")
    held_out = StreamImages([sets["held-out"]])
    found = evaluator.evaluate(
        StreamImages([sets["copied"]]),
        reference=StreamImages(iter([sets["train"]])),  # can be read once only
        metrics=["fid", "copies", "ct", "fld"],
        held_out=held_out,
    )
    assert {k: found["metrics"][k] for k in ("copies-look", "ct-look", "fld-look")} == score(sets, "copied")["metrics"]
    apart = evaluator.evaluate(StreamImages([sets["copied"]]), reference=StreamImages([sets["train"]]), metrics=["fid"])
    assert found["metrics"]["frechet-look"] == apart["metrics"]["frechet-look"]


def test_held_out_images_that_were_trained_on_are_noticed(sets: dict[str, Tensor]) -> None:
    mixed = {**sets, "held-out": torch.cat([sets["held-out"][:200], sets["train"][:9]])}
    assert any("9 of the 209 held-out images are training images" in note for note in score(mixed, "fresh")["notes"])


def test_mistakes(sets: dict[str, Tensor]) -> None:
    evaluator = Evaluator(ModuleExtractor("look", Look()), device="cpu")
    some = StreamImages([sets["fresh"]])

    def said(metrics: list[str], **more: Any) -> str:
        with pytest.raises(UserError) as e:
            evaluator.evaluate(some, metrics=metrics, **more)
        return str(e.value)

    assert "--train-data" in said(["copies"])
    assert "give --held-out" in said(["copies"], train=some)
    assert "as training and as held-out" in said(["ct"], train="x", held_out="x")
    both = StreamImages([sets["train"]])
    assert "as reference and as held-out" in said(["ct"], reference=both, held_out=both)
    assert "--feature-sample" in str(evaluator_error(sets, feature_sample=0, metrics=["copies"]))
    small = {**sets, "held-out": sets["held-out"][:50]}
    assert "at least 99 held-out" in score(small, "fresh")["unavailable"]["copies-look"]


def evaluator_error(sets: dict[str, Tensor], metrics: list[str], **settings: Any) -> UserError:
    evaluator = Evaluator(ModuleExtractor("look", Look()), device="cpu", **settings)
    with pytest.raises(UserError) as e:
        evaluator.evaluate(
            StreamImages([sets["fresh"]]),
            reference=StreamImages([sets["train"]]),
            metrics=metrics,
            held_out=StreamImages([sets["held-out"]]),
        )
    return e.value
