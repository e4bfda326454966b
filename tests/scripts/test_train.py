"""rcg-train from end to end at a tiny size, on a clock of its own; stopped and killed runs; refusals."""

from __future__ import annotations

import functools
import json
import re
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from rcg import RCGPipeline
from rcg.core.errors import UserError
from rcg.core.files import claimed
from rcg.core.schema import read_json
from rcg.data.cache import Cache
from rcg.data.sources import open_source
from rcg.recipe import prepare
from rcg.recipe import run as recipe
from rcg.recipe.journal import Journal
from rcg.recipe.run import Runner, train_pipeline
from rcg.recipe.wishes import Wishes
from rcg.scripts.sample import main as sample
from rcg.scripts.train import main
from rcg.training.subset import hold_out
from tests.forked import Forked
from tests.recipe.tiny import Ticks, tiny_settings

DATA = "shapes:n=120,size=16,seed=0"
FLAGS = ["--data", DATA, "--budget", "6s", "--extractor", "encoder", "--device", "cpu", "--train-encoder"]


def wishes(out: Path, **changes: Any) -> Wishes:
    given: dict[str, Any] = {"data": DATA, "budget": "6s", "extractor": "encoder", "device": "cpu"}
    return Wishes(out=out, **(given | {"train_encoder": "encoder" not in changes} | changes))


def steps_logged(out: Path, stage: str) -> list[int]:
    """Steps of the log's lines with a loss."""
    lines = (out / stage / "training/log.jsonl").read_text().splitlines()
    return [entry["step"] for entry in map(json.loads, lines) if "loss" in entry]


def weights(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of the command, and what it said."""
    out = tmp_path_factory.mktemp("train") / "mine"
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        changed = functools.partial(train_pipeline, settings=tiny_settings(), clock=Ticks(), say=said.append)
        patch.setattr(recipe, "train_pipeline", changed)
        main([*FLAGS, "--out", str(out)])
    return out, "\n".join(said)


def test_everything_is_there(finished: tuple[Path, str]) -> None:
    out, _ = finished
    pipe = RCGPipeline.from_pretrained(out / "model")
    assert pipe.encoder is not None
    assert pipe.rdm is not None
    assert pipe(batch_size=2, generator=torch.Generator().manual_seed(0), output_type="pt").images.shape == (
        2,
        3,
        16,
        16,
    )  # type: ignore[union-attr]
    journal: Journal = read_json(out / "plan.json", Journal)
    assert pipe.config.sampling["guidance_scale"] == journal["guidance_scale"]
    assert len(list((out / "images").glob("0*.png"))) == journal["plan"]["images"]
    report = json.loads((out / "metrics.json").read_text())
    assert report["counts"] == {"generated": journal["plan"]["images"], "reference": journal["plan"]["reference"]}
    assert {"frechet-encoder", "precision-encoder", "recall-encoder"} <= report["metrics"].keys()
    assert list(journal["took"]) == ["preparation", *(s["name"] for s in journal["first_plan"]["stages"])]


def test_the_best_guidance_is_the_models_own(finished: tuple[Path, str]) -> None:
    journal: Journal = read_json(finished[0] / "plan.json", Journal)
    assert set(journal["distances"]) == {"1", "2"}
    assert journal["distances"][f"{journal['guidance_scale']:g}"] == min(journal["distances"].values())


def test_held_out_images_are_in_no_cache(finished: tuple[Path, str]) -> None:
    out, _ = finished
    cache = Cache(out / "cache")
    held = open_source(out / "held-out", progress=False)
    assert len(cache) == 108
    assert 0 < len(held) <= 12
    trained = {image.tobytes() for image in cache.all("images", 0)} | {
        image.tobytes() for image in cache.all("images", 1)
    }
    for i in range(len(held)):
        pixels = torch.tensor(list(held.image(i).tobytes()), dtype=torch.uint8).view(16, 16, 3).permute(2, 0, 1)
        assert pixels.contiguous().numpy().tobytes() not in trained


def test_images_to_score_against_are_of_all_classes(finished: tuple[Path, str]) -> None:
    """Fewer than are held out, and the images may be sorted by class."""
    journal: Journal = read_json(finished[0] / "plan.json", Journal)
    journal["plan"]["reference"] = 4
    source = open_source(DATA)
    runner = Runner(wishes(finished[0]), tiny_settings(), source, journal, print, Ticks())
    _, held = hold_out(len(source), 12)
    assert runner.held_out.indices.tolist() == held[[0, 3, 6, 9]].tolist()


def test_the_plan_is_said_first_and_its_end_holds(finished: tuple[Path, str]) -> None:
    said = finished[1]
    order = [
        said.index(w)
        for w in ("120 images", "Measuring", "The plan", "It should end at", "Announced", "index.html to see")
    ]
    assert order == sorted(order)
    journal: Journal = read_json(finished[0] / "plan.json", Journal)
    assert journal["spent"] == pytest.approx(journal["seconds"], rel=0.2)
    assert sum(journal["took"].values()) == pytest.approx(journal["spent"], rel=0.01)


def test_the_page_stands_alone(finished: tuple[Path, str]) -> None:
    text = (finished[0] / "index.html").read_text()
    links: list[str] = []
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(v or "" for k, v in attrs if k in ("src", "href"))
            assert tag not in ("script", "iframe")
            if tag not in ("img", "link", "meta", "path", "br"):
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Reader().feed(text)
    assert open_tags == []
    assert len(links) >= 3
    assert all(link.startswith("data:image/png;base64,") or link == "data:," for link in links)  # the latter: no icon
    for words in (
        "real (held out)",
        "generated, guidance",
        "Samples over time",
        "generator: loss",
        "RDM: rep_fd",
        "In the end the generator saw",
        "What to try next",
    ):
        assert words in text, words
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower()


def test_the_commands_that_the_page_names_work(finished: tuple[Path, str], tmp_path: Path) -> None:
    """rcg-sample draws the very images that the recipe drew."""
    out, _ = finished
    (model,) = re.findall(r"rcg-sample --model (\S+)", (out / "index.html").read_text())
    sample(["--model", model, "--num-images", "3", "--out", str(tmp_path / "samples"), "--device", "cpu"])
    for name in ("000000.png", "000002.png"):
        assert (tmp_path / "samples" / name).read_bytes() == (out / "images" / name).read_bytes()


def test_a_finished_run_has_nothing_to_do(finished: tuple[Path, str]) -> None:
    said: list[str] = []
    train_pipeline(wishes(finished[0], resume=True), tiny_settings(), say=said.append, clock=Ticks())
    assert "nothing to do" in said[0]


KILL = """
import os, signal, sys
from pathlib import Path
from rcg.recipe.run import Runner, train_pipeline
from tests.recipe.tiny import Ticks, tiny_settings
from tests.scripts.test_train import wishes
show = Runner._show
def show_and_die(self, name, done=0):
    show(self, name, done)
    if name == "generator" and done > 0.6 * self._amount(name):
        os.kill(os.getpid(), signal.SIGKILL)
Runner._show = show_and_die
train_pipeline(wishes(Path(sys.argv[1]), encoder=sys.argv[2]), tiny_settings(), clock=Ticks())
"""


def test_killed_and_stopped_runs_go_on_by_their_plan(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, encoder = tmp_path / "cut", str(finished[0] / "encoder")
    killed_run = Forked("-c", KILL, out, encoder)
    _, errors = killed_run.communicate()
    assert killed_run.returncode == -signal.SIGKILL, errors[-2000:]
    killed: Journal = read_json(out / "plan.json", Journal)
    before = steps_logged(out, "generator")
    frozen = weights(out / "encoder"), weights(out / "rdm")
    assert list(killed["took"]) == ["preparation", "cache", "rdm"]

    show = Runner._show

    def interrupted(self: Runner, name: str, done: int = 0) -> None:
        show(self, name, done)
        if name == "guidance" and done > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "_show", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_pipeline(wishes(out, encoder=encoder, resume=True), tiny_settings(), clock=Ticks())
    monkeypatch.undo()
    after = steps_logged(out, "generator")
    assert after == sorted(set(after))  # it went on in the middle
    assert after[: len(before) // 2] == before[: len(before) // 2]
    stopped: Journal = read_json(out / "plan.json", Journal)
    assert stopped["first_plan"] == killed["first_plan"]
    assert {k: stopped["took"][k] for k in killed["took"]} == killed["took"]
    assert stopped["spent"] > killed["spent"]

    train_pipeline(wishes(out, encoder=encoder, resume=True), tiny_settings(), clock=Ticks())
    ended: Journal = read_json(out / "plan.json", Journal)
    assert (weights(out / "encoder"), weights(out / "rdm")) == frozen  # not touched again
    assert ended["spent"] == pytest.approx(ended["seconds"], rel=0.3)
    assert (out / "index.html").is_file()
    assert len(list((out / "images").glob("0*.png"))) == ended["plan"]["images"]


def test_a_cache_that_is_gone_on_with_shows_what_is_there(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, encoder = tmp_path / "out", str(finished[0] / "encoder")
    monkeypatch.setattr(recipe, "SHARD_IMAGES", (64, 64))
    for resume in (False, True):
        shown = list[int]()

        def interrupted(self: Runner, name: str, done: int = 0, shown: list[int] = shown) -> None:
            if name == "cache" and done:
                shown.append(done)
                if (out / "cache/shard-00000/images.npy").is_file():
                    raise KeyboardInterrupt

        monkeypatch.setattr(Runner, "_show", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_pipeline(wishes(out, encoder=encoder, resume=resume), tiny_settings(), say=str, clock=Ticks())
        assert (shown[0] > 64) == resume


def test_resuming_with_other_wishes_is_refused(finished: tuple[Path, str]) -> None:
    for changes, words in (
        ({"seed": 3}, "started with seed 0, not 3"),
        ({"data": "shapes:n=130,size=16"}, "started with data"),
        ({"budget": "9s"}, "planned for 6 s and cannot get another --budget"),
    ):
        with pytest.raises(ValueError, match=words):
            train_pipeline(wishes(finished[0], resume=True, **changes), tiny_settings(), clock=Ticks())


def test_a_given_encoder_is_frozen_and_goes_with_the_pipeline(finished: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "frozen"
    made = train_pipeline(
        wishes(out, encoder=str(finished[0] / "encoder"), budget="5s"),
        tiny_settings(),
        say=lambda text: None,
        clock=Ticks(),
    )
    assert made is not None
    assert "encoder" not in made["took"]
    given, kept = (
        next(folder.glob("*.safetensors")) for folder in (finished[0] / "encoder", out / "model" / "encoder")
    )
    assert given.read_bytes() == kept.read_bytes()


def test_a_budget_is_proposed_and_nothing_is_done(tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "none"
    assert train_pipeline(wishes(out, budget=None), tiny_settings(), say=said.append, clock=Ticks()) is None
    assert not out.exists()
    assert re.search(r"Proposed: --budget \w+, in which .* 10,800 images; .* near-copies", "\n".join(said))
    assert "--yes" in said[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budget", "soon"], "no length of time"),
        (["--yes"], "leave it out where --budget gives one"),
        (["--encoder", "x", "--train-encoder"], "exclude each other"),
        (["--resume"], "holds no run to go on with"),
        (["--encoder", "no/such/folder"], "there is no folder no/such/folder"),
        (["--encoder", "timm:resnet1"], "timm has no architecture 'resnet1'"),
        (["--image-size", "30"], "no multiple of 4"),
        (["--data", "shapes:n=20"], "too few to learn from"),
        (["--data", "no/such/folder"], "there is no folder"),
        (["--extractor", "encoder", "--extractor-weights", "x"], "leave out --extractor-weights"),
        (["--extractor", "inception", "--extractor-weights", "no.pth"], "there is no weights file"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*FLAGS[:4], "--device", "cpu", "--out", str(tmp_path / "out"), *flags])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert words in error.replace("\n", " ")
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 30}, "no multiple of 4"),
        pytest.param({"device": "cuda"}, "no usable CUDA GPU", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU")),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_images_are_opened(
    changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "open_source", lambda place: pytest.fail("opened"))
    with pytest.raises(UserError, match=words):
        train_pipeline(wishes(tmp_path / "out", **changes), tiny_settings(), clock=Ticks())


def test_an_encoder_that_cannot_be_had_is_said_before_images_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "look_at", lambda *_, **__: pytest.fail("looked"))
    with pytest.raises(UserError, match="resnet1"):
        train_pipeline(wishes(tmp_path / "out", encoder="timm:resnet1"), tiny_settings(), clock=Ticks())


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(UserError, match="another process is writing"):
        train_pipeline(wishes(tmp_path), tiny_settings())
    with pytest.raises(UserError, match="there is no folder"):
        train_pipeline(wishes(tmp_path / "new", data=str(tmp_path / "none")), tiny_settings())
    assert not (tmp_path / "new").exists()


def test_other_things_are_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SystemExit):
        main([*FLAGS, "--out", str(tmp_path)])
    assert "already holds other things" in capsys.readouterr().err
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(SystemExit):
        main([*FLAGS, "--out", str(tmp_path)])
    assert "add --resume to go on with it" in capsys.readouterr().err


def test_the_proposed_budget_is_taken_with_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "run", lambda self: self.journal)
    settings = tiny_settings(wanted_images=400)
    journal = train_pipeline(
        wishes(tmp_path / "out", budget=None, yes=True), settings, say=lambda text: None, clock=Ticks()
    )
    assert journal is not None
    assert journal["budget"] % 60 == 0
    assert journal["seconds"] == pytest.approx(0.98 * journal["budget"], rel=0.02)
    assert read_json(tmp_path / "out" / "plan.json", Journal)["plan"] == journal["plan"]


def test_too_short_a_budget_names_the_least(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a budget of 1 s is too short for 120 images .* give --budget \w+ or more"):
        train_pipeline(wishes(tmp_path / "out", budget="1s"), tiny_settings(), say=lambda text: None, clock=Ticks())
