"""The report: what is on its page and in its JSON, from folders and from pipelines."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.pictures import save_png
from rcg.eval.evaluate import Evaluator
from rcg.eval.extractors import ModuleExtractor
from rcg.eval.images import PipelineImages, StreamImages
from rcg.eval.matches import find_matches, match_sheet
from rcg.eval.metrics import METRICS
from rcg.eval.page import ABOUT, check_folder, write_evaluation
from rcg.eval.space_map import LEAST, make_map
from rcg.eval.sweeps import Sweep, check_metric, plan_sweeps, run_sweeps
from rcg.eval.views import interpolations, reconstructions
from tests.components import SIZE, get_dummy_pipeline

VOID = {"meta", "link", "img", "input", "br"}


class Pixels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


class Checker(HTMLParser):
    """Follows a page: open elements, identities, pictures without words, addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(folder: Path) -> tuple[str, dict[str, Any]]:
    """The page, found sound and self-contained, and the JSON."""
    text = (folder / "index.html").read_text()
    page = Checker(text)
    assert page.open == []
    for tag, attributes in page.seen:
        assert tag != "img" or "alt" in attributes
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    ids = [a["id"] for _, a in page.seen if "id" in a]
    assert len(ids) == len(set(ids))
    assert "url(" not in text
    assert "@import" not in text
    return text, json.loads((folder / "report.json").read_text())


def pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page")
    for name, count, seed in (("fake", 30, 0), ("real", 120, 1), ("train", 40, 2)):
        for i, image in enumerate(pixels(count, seed)):
            save_png(path / name / f"{i:03d}.png", Image.fromarray(image))
    for i in range(5):
        save_png(path / "fake" / f"copy{i}.png", Image.open(path / "train" / f"{i:03d}.png"))
    return path


@pytest.fixture
def evaluator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Evaluator:
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "cache"))
    return Evaluator(ModuleExtractor("pixels", Pixels()), device="cpu")


def test_of_folders(evaluator: Evaluator, room: Path, tmp_path: Path) -> None:
    examined = evaluator.examine(
        room / "fake",
        reference=room / "real",
        held_out=room / "real",
        train=room / "train",
        metrics=["fid", "prc", "copies"],
        neighbors=True,
        keep=True,
    )
    assert examined.sides.held_out is examined.sides.reference  # one pass
    nearest, others = find_matches(examined, 6)
    assert [m.train_files[0] for m in nearest[:5]] == [f"00{i}.png" for i in range(5)]
    assert all(m.near_copy and m.distances[0] == 0 for m in nearest[:5])
    assert nearest[5].distances[0] > 0
    for match in nearest[:5]:
        assert match.picture.tobytes() == match.train_pictures[0].tobytes()
    assert not {m.number for m in nearest} & {m.number for m in others}
    told = examined.report["settings"]["copies-pixels"]
    unsaid = {"copies-pixels": {k: v for k, v in told.items() if k != "threshold"}}  # as of repeats that differ in it
    bare = replace(examined, report=examined.report | {"settings": unsaid})
    assert [m.near_copy for m in find_matches(bare, 6)[0]] == [None] * 6
    sheet = match_sheet([("a", nearest), ("b", others)])
    assert sheet.height > 12 * 64
    assert sheet.crop((6, 26, 70, 90)).tobytes() == nearest[0].picture.resize((64, 64), 0).tobytes()

    examined.report["command"] = ["rcg-eval", "--generated", "my samples"]
    write_evaluation(tmp_path / "out", examined)
    text, report = checked(tmp_path / "out")
    assert "rcg-eval --generated &#x27;my samples&#x27;" in text  # as it can be given again
    assert report["metrics"] == examined.report["metrics"]
    assert report["neighbors"][0]["near_copy"] is True
    assert report["neighbors"][0]["train"][0]["file"] == "000.png"
    assert len(report["map"]["real"]["numbers"]) == 120
    assert len(report["map"]["generated"]["tsne"]) == 35
    for words in ("frechet-pixels", "Fréchet distance of", "near-copy", "35 generated images", "120 real", "Versions"):
        assert words in text
    assert "From one representation" not in text
    (data,) = re.findall(r'id="map-data">(.*?)</script>', text)
    assert json.loads(data)["numbers"][:2] == report["map"]["real"]["numbers"][:2]
    check_folder(tmp_path / "out")  # may be replaced


def test_of_a_pipeline(evaluator: Evaluator, room: Path, tmp_path: Path) -> None:
    pipe = get_dummy_pipeline()
    images = PipelineImages(pipe, 12, seed=3, name="my <model>", guidance_scale=1.5)
    examined = evaluator.examine(images, reference=room / "real", metrics=["fid"], keep=True)
    sweeps = [Sweep("guidance_scale", (1.0, 1.5, 3.0)), Sweep("num_inference_steps", (2, 4))]
    planned = plan_sweeps(pipe, sweeps, 12, seed=3, settings={"guidance_scale": 1.5})
    found = run_sweeps(evaluator, sweeps, planned, reference=examined.sides.reference, metric="fid")
    # a point with the settings of the evaluation has its figure
    assert found[0]["points"][1]["metrics"] == examined.report["metrics"]
    assert found[1]["settings"]["guidance_scale"] == 1.5
    assert [p["value"] for p in found[1]["points"]] == [2, 4]
    assert len({p["metrics"]["frechet-pixels"] for sweep in found for p in sweep["points"]}) == 5

    write_evaluation(tmp_path / "out", examined, pipeline=pipe, sweeps=found)
    text, report = checked(tmp_path / "out")
    assert report["sweeps"] == found
    assert "my &lt;model&gt;" in text
    assert text.count('class="row"') == 3 + 3
    assert "frechet-pixels by guidance" in text
    assert "Not shown: give --train-data" in text
    assert pipe.identity() in text


def test_what_a_pipeline_cannot_is_said(evaluator: Evaluator, room: Path, tmp_path: Path) -> None:
    pipe = get_dummy_pipeline(condition="none")
    images = PipelineImages(pipe, 9)
    examined = evaluator.examine(images, reference=room / "real", metrics=["fid"], keep=True)
    write_evaluation(tmp_path / "out", examined, pipeline=pipe)
    text, _ = checked(tmp_path / "out")
    assert text.count("takes no representations") == 2


def test_views_are_of_the_seed(room: Path) -> None:
    pipe = get_dummy_pipeline()
    images = PipelineImages(pipe, 4, seed=1)
    strips = interpolations(pipe, images)
    assert [len(strip) for strip in strips] == [9, 9, 9]
    assert strips[0][0].tobytes() == interpolations(pipe, images)[0][0].tobytes()
    real = torch.from_numpy(pixels(3, 0)).permute(0, 3, 1, 2)
    drawn = reconstructions(pipe, images, real)
    assert len(drawn) == 3
    assert drawn[2][0].tobytes() == pixels(3, 0)[2].tobytes()
    assert drawn[0][1][0].tobytes() != drawn[0][1][1].tobytes()


def test_images_can_be_had_again(room: Path) -> None:
    pipe = get_dummy_pipeline(condition="class")
    images = PipelineImages(pipe, 40, labels="balanced", seed=2)
    whole = torch.cat(list(images.batches(8)))
    assert torch.equal(images.pick([7, 0, 33]), whole[[7, 0, 33]])
    calls: list[int] = []
    counted = PipelineImages(pipe, 40, labels="balanced", seed=2, remember=20 * whole[0].nbytes + 5)
    draw = counted._draw
    counted._draw = lambda numbers: (calls.append(len(numbers)), draw(numbers))[1]  # type: ignore[assignment, return-value, method-assign]
    assert torch.equal(torch.cat(list(counted.batches(8))), whole)
    assert torch.equal(counted.pick([7, 0, 7, 33]), whole[[7, 0, 7, 33]])
    assert calls == [8] * 5 + [1]  # the first 20 are at hand
    parts = list(whole.split(7))
    assert torch.equal(StreamImages(parts).pick([39, 3]), whole[[39, 3]])  # type: ignore[arg-type]
    assert StreamImages(iter(parts)).pick([3]) is None


def test_a_stream_that_has_passed_is_not_shown(evaluator: Evaluator, room: Path, tmp_path: Path) -> None:
    stream = iter([torch.from_numpy(pixels(12, 0)).permute(0, 3, 1, 2)])
    examined = evaluator.examine(stream, reference=room / "real", metrics=["fid"], keep=True)
    write_evaluation(tmp_path / "out", examined)
    text, report = checked(tmp_path / "out")
    assert "not at hand" in text
    assert "map" not in report
    again = iter([torch.from_numpy(pixels(12, 0)).permute(0, 3, 1, 2)])
    sides: dict[str, Any] = {"held_out": room / "real", "train": room / "train", "neighbors": True, "keep": True}
    examined = evaluator.examine(again, reference=room / "real", metrics=["fid"], **sides)
    write_evaluation(tmp_path / "out", examined)  # the rest of the page is not lost
    text, report = checked(tmp_path / "out")
    assert "Not shown: images of a stream cannot be shown" in text
    assert "neighbors" not in report


def test_the_map_keeps_groups_apart() -> None:
    g = np.random.default_rng(0)
    real, fake = g.normal(0, 1, (60, 20)), g.normal(0, 1, (LEAST, 20)) + 30
    found = make_map(real.astype(np.float32), fake.astype(np.float32), range(60), range(LEAST))
    assert found.pca.shape == found.tsne.shape == (60 + LEAST, 2)
    assert np.isfinite(found.pca).all()
    centre = found.tsne[:60].mean(axis=0)
    assert (
        np.linalg.norm(found.tsne[60:] - centre, axis=1).min() > np.linalg.norm(found.tsne[:60] - centre, axis=1).mean()
    )
    many = make_map(g.normal(0, 1, (1000, 3)), g.normal(0, 1, (500, 3)), range(1000), range(500))
    assert len(many.real) == len(set(many.real)) == 400
    assert max(many.real) == 999


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_equal_images_have_a_map_too() -> None:
    some, flat = np.random.default_rng(0).normal(0, 1, (12, 5)), np.ones((12, 5))
    for fake in (some, flat):
        found = make_map(flat, fake, range(12), range(12))
        assert found.explained == 0
        assert np.isfinite(found.pca).all()
        assert np.isfinite(found.tsne).all()


def test_every_figure_is_explained() -> None:
    several = {"prc": ["precision", "recall", "f_score"], "dc": ["density", "coverage"]}
    names = [figure for metric in METRICS for figure in several.get(metric, [metric])]
    assert sorted(names) == sorted(ABOUT)


def test_mistakes(evaluator: Evaluator, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs training images; choose among fid"):
        check_metric("fld", 100)
    with pytest.raises(UserError, match="a single metric"):
        check_metric("fid,kid", 100)
    with pytest.raises(UserError, match="there is no metric"):
        check_metric("fod", 100)
    with pytest.raises(UserError, match="at least 50 images at a point"):
        check_metric("kid", 40)
    left = run_sweeps(
        evaluator,
        [Sweep("guidance_scale", (1.0,))],
        [[PipelineImages(get_dummy_pipeline(), 2)]],
        reference=None,
        metric="fid",
    )
    assert left == []  # and what was measured before is not lost
    with pytest.raises(UserError, match="cannot be used"):
        plan_sweeps(get_dummy_pipeline(condition="none"), [Sweep("guidance_scale", (2.0,))], 4)
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UserError, match=r"holds another index\.html"):
        check_folder(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        check_folder(tmp_path / "index.html")
