"""Who judges, and what is chosen by it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core.errors import UserError
from rcg.data.images import Framing
from rcg.data.sources import open_source
from rcg.recipe import judging
from rcg.recipe.drawing import best_scale, take_over
from rcg.recipe.judging import Judge, choose_extractor, of_encoder, write_pictures
from rcg.recipe.stages import new_encoder
from rcg.sampling.drawing import one_thread_each
from tests.recipe.tiny import tiny_settings


@pytest.fixture(scope="module")
def encoder() -> object:
    return new_encoder(tiny_settings(), 0)


def test_without_inception_the_encoder_judges_and_says_so(encoder: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> None:
        raise UserError("Inception's weights cannot be downloaded (no network). Extractors that need no download: …")

    monkeypatch.setattr(judging, "open_extractor", offline)
    said: list[str] = []
    name, extractor = choose_extractor(None, None, encoder, said.append)  # type: ignore[arg-type]
    assert (name, extractor.name) == ("encoder", "encoder")
    assert said[0].startswith("Inception's weights cannot be downloaded (no network). So the encoder judges")
    with pytest.raises(UserError, match="cannot be downloaded"):  # who asks for it is told
        choose_extractor("inception", None, encoder, said.append)  # type: ignore[arg-type]
    assert len(said) == 1


def test_inception_judges_where_it_can_be_had(encoder: object, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(judging, "open_extractor", lambda *given: asked.append(given) or of_encoder(encoder))  # type: ignore[arg-type, func-returns-value]
    weights = Path("weights.pth")
    names = [
        choose_extractor(w, f, encoder, print)[0]
        for w, f in ((None, None), (None, weights), ("inception-768", weights))
    ]  # type: ignore[arg-type]
    assert names == ["inception", "inception", "inception-768"]
    assert asked == [("inception",), ("inception", weights), ("inception-768", weights)]


def test_an_encoder_of_a_folder_judges(encoder: object, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    name, extractor = choose_extractor(f"encoder:{tmp_path}", None, encoder, print)  # type: ignore[arg-type]
    assert (name, extractor.name) == (f"encoder:{tmp_path}", "encoder")


def test_pictures_are_framed_as_the_generator_sees_them(tmp_path: Path) -> None:
    source = open_source("shapes:n=5,size=24,seed=0")
    write_pictures(source, tmp_path, 16)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{i:06d}.png" for i in range(5)]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "000003.png")), Framing(16).base(source.image(3)))


def test_a_picture_that_a_power_failure_tore_is_written_again(tmp_path: Path) -> None:
    source, torn, kept = open_source("shapes:n=3,size=16"), tmp_path / "000001.png", tmp_path / "000002.png"
    write_pictures(source, tmp_path, 16)
    whole, before = torn.read_bytes(), kept.stat().st_mtime_ns
    for left in (whole[:40], b""):
        torn.write_bytes(left)
        write_pictures(source, tmp_path, 16)
        assert torn.read_bytes() == whole
    assert kept.stat().st_mtime_ns == before


def test_a_judge_prefers_the_real_ones(encoder: object, tmp_path: Path) -> None:
    write_pictures(open_source("shapes:n=80,size=16,seed=0"), tmp_path / "held-out", 16)
    write_pictures(open_source("shapes:n=80,size=16,seed=1"), tmp_path / "good", 16)
    rng = np.random.default_rng(0)
    (tmp_path / "bad").mkdir()
    for i in range(80):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "bad" / f"{i:06d}.png")
    judge = Judge(of_encoder(encoder), tmp_path / "held-out", torch.device("cpu"))  # type: ignore[arg-type]
    distances = {"1": judge.distance(tmp_path / "bad"), "2": judge.distance(tmp_path / "good")}
    assert (tmp_path / "held-out.npz").is_file()
    assert best_scale(distances) == 2.0
    assert judge.metric == "frechet-encoder"


def test_of_equals_the_smaller_scale_is_taken() -> None:
    assert best_scale({"2": 1.0, "1.5": 1.0, "1": 1.2}) == 1.5


def test_images_are_taken_over_once(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "000000.png").write_bytes(b"x")
    take_over(tmp_path / "from", tmp_path / "into")
    (tmp_path / "from" / "000001.png").write_bytes(b"y")
    take_over(tmp_path / "from", tmp_path / "into")
    assert [p.name for p in (tmp_path / "into").iterdir()] == ["000000.png"]


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with contextlib.suppress(KeyError), one_thread_each(torch.device("cpu")) as threads:
        assert (threads, torch.get_num_threads()) == (before, 1)
        raise KeyError
    assert torch.get_num_threads() == before
