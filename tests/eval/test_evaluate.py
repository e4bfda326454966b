"""What `rcg-eval` does, from Python. (The command itself: tests/scripts/test_eval.py.)"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.pictures import save_png
from rcg.eval import evaluate as evaluate_
from rcg.eval.evaluate import Evaluator, evaluate
from rcg.eval.extractors import ModuleExtractor
from rcg.eval.images import PipelineImages, StreamImages
from rcg.eval.measure import measure
from rcg.eval.references import load_stats, save_stats
from tests.components import get_dummy_pipeline


class Pixels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, ::8, ::8].flatten(1)


@pytest.fixture
def extractor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleExtractor:
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "cache"))
    return ModuleExtractor("pixels", nn.Sequential(nn.AdaptiveAvgPool2d(16), Pixels()))


def pixels(count: int, seed: int, low: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, 256, (count, 16, 16, 3)).astype(np.uint8)


def folder(path: Path, count: int, seed: int, low: int = 0) -> Path:
    for i, image in enumerate(pixels(count, seed, low)):
        save_png(path / f"{i:03d}.png", Image.fromarray(image))
    return path


def stream(count: int, seed: int, size: int = 16) -> Iterator[Tensor]:
    whole = torch.from_numpy(pixels(count, seed)).permute(0, 3, 1, 2)[:, :, :size, :size]
    yield from whole.split(7)


def test_folders(extractor: ModuleExtractor, tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", 20, 0), folder(tmp_path / "other", 24, 1)
    notes: list[str] = []
    found = evaluate(
        one, reference=other, metrics=["fid", "kid"], extractor=extractor, device="cpu", on_note=notes.append
    )
    assert list(found["metrics"]) == ["frechet-pixels"]
    assert "at least 50" in found["unavailable"]["kid-pixels"]
    assert found["sources"] == {"generated": str(one), "reference": str(other)}
    assert found["counts"] == {"generated": 20, "reference": 24}
    left_out = f"kid-pixels is left out: {found['unavailable']['kid-pixels']}"
    assert sorted(notes) == sorted([left_out, *found["notes"]])  # said as it runs, too
    evaluate(one, reference=other, metrics=["isc", "fid"], extractor=extractor, device="cpu", on_note=notes.append)
    assert any("isc-pixels is left out" in note for note in notes)
    with pytest.raises(UserError, match="give --reference"):
        evaluate(one, reference=None, metrics=["fid"], extractor=extractor, device="cpu")


def test_a_pipeline(extractor: ModuleExtractor, tmp_path: Path) -> None:
    pipe = get_dummy_pipeline()
    images = PipelineImages(pipe, 7, seed=3, name="mine", guidance_scale=2.0)
    assert [len(batch) for batch in images.batches(5)] == [5, 2]
    found = evaluate(
        images,
        reference=folder(tmp_path / "real", 9, 0),
        metrics=["fid"],
        extractor=extractor,
        device="cpu",
        batch_size=5,
    )
    assert found["counts"] == {"generated": 7, "reference": 9}
    assert found["sources"]["generated"] == "mine"
    assert found["pipeline"] == {"identity": pipe.identity(), "settings": images.settings, "seed": 3}
    assert images.settings["guidance_scale"] == 2.0
    assert found["sets"]["generated"]["size"] == "16×16"


def test_classes_of_a_pipeline_are_disclosed(extractor: ModuleExtractor, tmp_path: Path) -> None:
    pipe = get_dummy_pipeline(condition="class")
    real = folder(tmp_path / "real", 9, 0)
    random, balanced = (PipelineImages(pipe, 12, labels=how) for how in ("random", "balanced"))
    found = evaluate(balanced, reference=real, metrics=["fid"], extractor=extractor, device="cpu")
    assert found["pipeline"]["labels"] == "balanced"
    assert any("in turn" in note for note in found["notes"])
    assert any(
        "at random" in note
        for note in evaluate(random, reference=real, metrics=["fid"], extractor=extractor, device="cpu")["notes"]
    )
    drawn = torch.cat(list(balanced.batches(5)))
    assert torch.equal(drawn, torch.cat(list(balanced.batches(12))))
    assert not torch.equal(drawn, torch.cat(list(random.batches(12))))
    with pytest.raises(UserError, match="has none"):
        PipelineImages(get_dummy_pipeline(), 4, labels="balanced")


METRICS = ["fid", "fid_infinity", "kid", "prc", "dc", "mind", "vendi"]


def test_the_same_images_give_the_same_figures_however_they_come(extractor: ModuleExtractor, tmp_path: Path) -> None:
    """A folder, an .npz, a stream of batches and a pipeline-like set; without a PNG in between."""
    one, other = folder(tmp_path / "one", 60, 0), folder(tmp_path / "other", 70, 1)
    np.savez(tmp_path / "one.npz", arr_0=pixels(60, 0))
    np.savez(tmp_path / "other.npz", arr_0=pixels(70, 1))
    evaluator = Evaluator(extractor, device="cpu")
    expected = evaluator.evaluate(one, reference=other, metrics=METRICS)
    assert len(expected["metrics"]) == 11
    assert expected["sets"]["reference"]["formats"] == {"png": 70}
    for generated, reference in (
        (tmp_path / "one.npz", tmp_path / "other.npz"),
        (stream(60, 0), stream(70, 1)),
        (StreamImages(stream(60, 0), 60), evaluator.make_stats(other)),
    ):
        assert evaluator.evaluate(generated, reference=reference, metrics=METRICS)["metrics"] == expected["metrics"]
    again = Evaluator(extractor, device="cpu", batch_size=7).evaluate(one, reference=other, metrics=METRICS)
    assert again["metrics"] == expected["metrics"]  # to the bit


def test_statistics_of_other_programs_and_their_images(extractor: ModuleExtractor, tmp_path: Path) -> None:
    """ADM's files: mu and sigma of Inception over all images, and some of these."""
    one, other = folder(tmp_path / "one", 60, 0), folder(tmp_path / "other", 70, 1)
    notes: list[str] = []
    evaluator = Evaluator(extractor, device="cpu", on_note=notes.append)
    expected = evaluator.evaluate(one, reference=other, metrics=["fid", "prc"])["metrics"]
    stats = evaluator.make_stats(other)
    np.savez(tmp_path / "adm.npz", mu=stats.mu, sigma=stats.sigma, arr_0=pixels(70, 1))
    assert evaluator.evaluate(one, reference=tmp_path / "adm.npz", metrics=["fid", "prc"])["metrics"] == expected
    assert any("statistics of another extractor, so its 70 images are measured" in note for note in notes)
    extractor.name = "inception"  # as if the statistics were of this one
    mixed = evaluator.evaluate(one, reference=tmp_path / "adm.npz", metrics=["fid", "prc"])
    assert list(mixed["metrics"].values()) == list(expected.values())
    np.savez(tmp_path / "bare.npz", mu=stats.mu * 2, sigma=stats.sigma, arr_0=pixels(70, 1))
    moved = evaluator.evaluate(one, reference=tmp_path / "bare.npz", metrics=["fid", "prc"])["metrics"]
    assert moved["fid"] > mixed["metrics"]["fid"] + 1  # the distance is to the statistics, the rest to the images
    assert moved["precision"] == mixed["metrics"]["precision"]
    small = Evaluator(extractor, device="cpu", image_size=8)
    for metrics in (["fid"], ["fid", "prc"]):  # the statistics are of images of 16 px, whatever these are brought to
        with pytest.raises(UserError, match="8×8 px and the reference 16×16 px"):
            small.evaluate(one, reference=tmp_path / "bare.npz", metrics=metrics)
        with pytest.raises(UserError, match="8×8 px and the reference 16×16 px"):
            evaluator.evaluate(stream(20, 0, size=8), reference=tmp_path / "bare.npz", metrics=metrics)


def test_what_does_not_compare_is_refused(extractor: ModuleExtractor, tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", 20, 0), folder(tmp_path / "other", 24, 1)
    small, plain = (Evaluator(extractor, device="cpu", image_size=8, resize=r) for r in ("antialiased", "plain"))
    save_stats(tmp_path / "small.npz", small.make_stats(other))
    kept = load_stats(tmp_path / "small.npz")
    assert (kept.origin.size, kept.origin.resize) == ("8×8", "bicubic, with antialias, centre crop")
    assert (
        small.evaluate(one, reference=tmp_path / "small.npz", metrics=["fid"])["metrics"]
        == small.evaluate(one, reference=other, metrics=["fid"])["metrics"]
    )
    with pytest.raises(UserError, match="16×16 px and the reference 8×8 px"):
        evaluate(one, reference=tmp_path / "small.npz", metrics=["fid"], extractor=extractor, device="cpu")
    with pytest.raises(UserError, match="in another way"):
        plain.evaluate(one, reference=kept, metrics=["fid"])
    with pytest.raises(UserError, match="16×16 px and the reference 8×8 px"):
        evaluate(stream(20, 0), reference=stream(20, 1, size=8), metrics=["fid"], extractor=extractor, device="cpu")
    with pytest.raises(UserError, match="other weights"):
        small.evaluate(one, reference=replace(kept, origin=replace(kept.origin, weights_hash="x")), metrics=["fid"])


def test_held_out_images(extractor: ModuleExtractor, tmp_path: Path) -> None:
    evaluator = Evaluator(extractor, device="cpu")
    one, train = folder(tmp_path / "one", 20, 0), folder(tmp_path / "train", 24, 1)
    unseen = folder(tmp_path / "test", 12, 2)
    notes: list[str] = []
    Evaluator(extractor, device="cpu", on_note=notes.append).evaluate(
        one, reference=train, metrics=["fid"], held_out=unseen
    )
    assert any("play no part: none of these metrics asks for them" in note for note in notes)
    found = evaluator.evaluate(one, reference=train, metrics=["fid", "fld"], held_out=unseen)
    assert set(found["metrics"]) == {"frechet-pixels", "fld-pixels"}
    assert found["settings"]["fld-pixels"]["test"] == 12
    assert "--held-out" in evaluator.evaluate(one, reference=train, metrics=["fid", "fld"])["unavailable"]["fld-pixels"]
    bare = replace(evaluator.make_stats(tmp_path / "test"), features=None)
    said = evaluator.evaluate(one, reference=train, metrics=["fid", "fld"], held_out=bare)["unavailable"]["fld-pixels"]
    assert "statistics with their features" in said


def test_repeats(extractor: ModuleExtractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [folder(tmp_path / str(seed), 20, seed) for seed in range(3)]
    evaluator = Evaluator(extractor, device="cpu")
    real = folder(tmp_path / "real", 30, 9)
    each = [evaluator.evaluate(one, reference=real, metrics=["fid", "vendi"])["metrics"] for one in sets]
    found = evaluator.examine_repeats(sets, reference=real, metrics=["fid", "vendi"]).report
    for name in ("frechet-pixels", "vendi-pixels"):
        values = [figures[name] for figures in each]
        assert found["metrics"][name] == pytest.approx(np.mean(values))
        assert found["deviations"][name] == pytest.approx(np.std(values, ddof=1))
    assert [r["sources"]["generated"] for r in found["repeats"]] == list(map(str, sets))
    read_once = iter([torch.from_numpy(pixels(12, 5)).permute(0, 3, 1, 2)])
    found = evaluator.examine_repeats(
        sets, reference=real, metrics=["fid", "fld"], held_out=read_once, train=real
    ).report
    last = evaluator.evaluate(
        sets[2], reference=real, metrics=["fld"], held_out=folder(tmp_path / "test", 12, 5), train=real
    )
    assert found["repeats"][2]["metrics"]["fld-pixels"] == last["metrics"]["fld-pixels"]
    measured: list[str] = []
    monkeypatch.setattr(evaluate_, "measure", lambda *g, **k: (measured.append(k["label"]), measure(*g, **k))[1])
    known = {"reference": real, "metrics": ["fid", "fld"], "held_out": folder(tmp_path / "test", 12, 5)}
    for train in (None, folder(tmp_path / "train", 12, 6)):
        measured.clear()
        found = evaluator.examine_repeats(sets, train=train, **known).report
        assert measured.count("generated images") == 3
        assert len(measured) == (5 if train is None else 6)  # real images once
        last = evaluator.evaluate(sets[2], train=train, **known)
        assert found["repeats"][2]["metrics"] == last["metrics"]
    said: list[str] = []
    uneven = Evaluator(extractor, device="cpu", on_note=said.append)
    found = uneven.examine_repeats([*sets, folder(tmp_path / "few", 10, 3)], reference=real, metrics=["vendi"]).report
    assert "The repeats have 10 to 20 images" in found["notes"][-1] == said[-1]
    single = evaluator.examine_repeats(sets[:1], reference=real, metrics=["fid", "vendi"]).report
    assert single["metrics"] == each[0]
    assert "deviations" not in single


def test_a_limit_that_leaves_no_training_image_out_is_none(extractor: ModuleExtractor, tmp_path: Path) -> None:
    sets = {"generated": folder(tmp_path / "one", 20, 0), "reference": folder(tmp_path / "real", 24, 1)}
    more = {"held_out": folder(tmp_path / "test", 20, 2), "metrics": ["fid"], "neighbors": True}
    found = Evaluator(extractor, device="cpu", limit=24).examine(**sets, **more)
    assert found.sides.train is not None
    with pytest.raises(UserError, match="--limit leaves training images out"):
        Evaluator(extractor, device="cpu", limit=23).examine(**sets, **more)


def test_how_a_folder_was_sampled_is_said(
    extractor: ModuleExtractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = folder(tmp_path / "one", 20, 0)
    settings = {"seed": 4, "class_labels": [0, 1, 2]}
    (one / "sampling.json").write_text(json.dumps({"format": 1, "run": "x", "model": "m", "settings": settings}))
    found = evaluate(one, reference=folder(tmp_path / "real", 9, 0), metrics=["fid"], extractor=extractor, device="cpu")
    assert found["sampling"] == settings
    assert any("of 3 given class(es) in turn" in note for note in found["notes"])
    (one / "sampling.json").write_text("{")
    monkeypatch.setattr(Evaluator, "measure", lambda *given: pytest.fail("measured before it was refused"))
    with pytest.raises(UserError, match=r"sampling\.json is not valid JSON"):
        evaluate(one, reference=tmp_path / "real", metrics=["fid"], extractor=extractor, device="cpu")


def test_a_sample_of_features_bounds_what_is_kept(extractor: ModuleExtractor, tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", 80, 0), folder(tmp_path / "other", 90, 1)
    found = Evaluator(extractor, device="cpu", feature_sample=55).evaluate(one, reference=other, metrics=["fid", "kid"])
    assert found["settings"]["kid-pixels"]["generated"] == found["settings"]["kid-pixels"]["reference"] == 55
    assert found["settings"]["frechet-pixels"] == {"generated": 80, "reference": 90}
    bare = Evaluator(extractor, device="cpu", feature_sample=0)
    assert "features" in str(bare.evaluate(one, reference=other, metrics=["fid", "vendi"])["unavailable"])


def test_what_bf16_changes_is_said(extractor: ModuleExtractor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    linear = ModuleExtractor("linear", nn.Sequential(nn.AdaptiveAvgPool2d(16), nn.Flatten(), nn.Linear(768, 8)))
    notes: list[str] = []
    evaluator = Evaluator(linear, device="cpu", precision="bf16", on_note=notes.append)
    found = evaluator.evaluate(
        folder(tmp_path / "one", 20, 0), reference=folder(tmp_path / "other", 24, 1), metrics=["fid"]
    )
    assert 0 < found["extractor"]["bf16_change"] < 0.05
    (note,) = [note for note in notes if "bf16 moves the features" in note]
    assert 0 < float(note.split(" by ")[1].split(" %")[0]) < 5


def test_refusals_come_before_anything_is_measured(
    tmp_path: Path, extractor: ModuleExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = folder(tmp_path / "one", 4, 0), folder(tmp_path / "other", 5, 1)
    idle = Evaluator(extractor, device="cpu", feature_sample=0)
    with pytest.raises(UserError, match="sfid cannot be computed"):
        idle.examine(one, reference=other, metrics=["fid"], serves=["sfid"])
    with pytest.raises(UserError, match="--feature-sample must be above 0"):
        idle.examine(one, reference=other, metrics=["fid"], held_out=one, neighbors=True)
    made = Evaluator(extractor, device="cpu", image_size=8, resize="plain").make_stats(other)
    monkeypatch.setattr(Evaluator, "measure", lambda *given: pytest.fail("measured before it was refused"))
    with pytest.raises(UserError, match="in another way"):
        Evaluator(extractor, device="cpu", image_size=8).evaluate(one, reference=made, metrics=["fid"])


def test_an_npz_of_images_and_statistics(tmp_path: Path, extractor: ModuleExtractor) -> None:
    path, evaluator = tmp_path / "both.npz", Evaluator(extractor, device="cpu")
    images = pixels(12, 1)
    np.savez(tmp_path / "images.npz", arr_0=images)
    made = evaluator.make_stats(tmp_path / "images.npz")
    save_stats(tmp_path / "stats.npz", replace(made, features=None, numbers=None))
    with np.load(tmp_path / "stats.npz") as held:
        np.savez(path, arr_0=images, **held)
    assert evaluator.measure_reference(path, ["fid"]).features is None
    found = evaluator.measure_reference(path, ["prc"]).features
    assert found is not None
    assert len(found) == 12
    kept = evaluator.examine(folder(tmp_path / "some", 9, 3), reference=path, metrics=["fid"], keep=True)
    assert kept.sides.reference is not None
    assert kept.sides.reference.features is not None  # for a page's map, and the images themselves for its samples
    assert kept.reference is not None
    one, unseen = folder(tmp_path / "one", 9, 0), folder(tmp_path / "unseen", 9, 2)
    examined = evaluator.examine(one, reference=path, metrics=["fid"], held_out=unseen, neighbors=True)
    assert examined.train is not None
    assert examined.sides.nearest()[0].numbers.shape[0] == 9
