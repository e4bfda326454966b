"""What TensorBoard and W&B are told: figures, pictures, histograms; a resumed run goes on in the same place."""

from __future__ import annotations

import importlib.machinery
import signal
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import LoggerType
from PIL import Image

from rcg.core.errors import UserError
from rcg.training.loop import train
from rcg.training.trackers import BINS, MOST_WEIGHTS, RUN_ID, _count, weights_of
from tests.training.stages import RegressionStage
from tests.training.test_loop import StopAt, assert_equal_runs, config, curve


class Shown(RegressionStage):
    """A stage with a picture and a distribution."""

    def preview(self, seed: int) -> Image.Image:
        return Image.fromarray(np.full((6, 9, 3), (10, 20, 200), np.uint8))

    def distributions(self, seed: int) -> dict[str, torch.Tensor]:
        return {"norms": torch.linspace(1, 2, 100), "nothing": torch.full((3,), float("nan"))}


def events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(
        str(folder / "training/tensorboard"),
        dict.fromkeys(("scalars", "images", "histograms", "compressedHistograms"), 0),
    )
    return found.Reload()


def test_tensorboard_holds_what_the_log_holds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(Shown(), config(tmp_path / "with", tracker="tensorboard", eval_every=10))
    train(Shown(), config(tmp_path / "without", eval_every=10))
    assert_equal_runs(tmp_path / "with", tmp_path / "without")  # watching changes nothing
    found = events(tmp_path / "with")
    logged = [(line["step"], line["loss"]) for line in curve(tmp_path / "with") if "loss" in line]
    shown = [(event.step, event.value) for event in found.Scalars("loss")]
    assert [step for step, _ in shown] == [step for step, _ in logged]
    np.testing.assert_allclose([v for _, v in shown], [v for _, v in logged], rtol=1e-6)
    assert {"samples_per_second", "time/forward", "time/data", "eval/error", "run/seconds"} <= set(
        found.Tags()["scalars"]
    )
    pictures = found.Images("samples")
    assert [(p.step, p.width, p.height) for p in pictures] == [(10, 9, 6), (20, 9, 6), (23, 9, 6)]
    norms = found.Histograms("norms")[0].histogram_value
    assert (norms.num, norms.min, norms.max) == (100, 1, 2)
    assert norms.sum == pytest.approx(150)
    assert "weights/o0/net.0.weight" in found.Tags()["histograms"]
    assert "nothing" not in found.Tags()["histograms"]


def test_tensorboard_forgets_what_a_stopped_run_lost(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(KeyboardInterrupt):
        train(StopAt(11, signal.SIGTERM), config(tmp_path, tracker="tensorboard", log_every=1))
    train(Shown(), config(tmp_path, tracker="tensorboard", log_every=1, resume=True))
    assert [event.step for event in events(tmp_path).Scalars("loss")] == list(range(1, 24))


def test_tensorboard_forgets_a_run_that_died_before_its_first_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    class Dies(RegressionStage):
        def on_step_end(self, step: int, total_steps: int) -> None:
            if step == 4:
                raise MemoryError

    with pytest.raises(MemoryError):
        train(Dies(), config(tmp_path, tracker="tensorboard", log_every=1))
    train(Shown(), config(tmp_path, tracker="tensorboard", log_every=1, resume=True))
    assert [event.step for event in events(tmp_path).Scalars("loss")] == list(range(1, 24))


class FakeRun:
    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.told["lines"].append((step, values))

    def finish(self) -> None:
        self.told["finished"] += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A package of that name which remembers what it is told."""
    told: dict[str, Any] = {"lines": [], "init": [], "finished": 0, "config": {}}
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.__version__ = "0.17.0"  # type: ignore[attr-defined]
    fake.init = lambda **options: told["init"].append(options) or FakeRun(told)  # type: ignore[attr-defined, func-returns-value]
    fake.config = types.SimpleNamespace(update=lambda values, **_: told["config"].update(values))  # type: ignore[attr-defined]
    fake.Image = lambda pixels: ("image", pixels.shape)  # type: ignore[attr-defined]
    fake.Histogram = lambda np_histogram: ("histogram", np_histogram)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    monkeypatch.setattr("rcg.training.trackers.importlib.util.find_spec", lambda name: fake.__spec__)
    return told


def test_wandb_is_told_the_same_and_goes_on_in_one_run(tmp_path: Path, wandb: dict[str, Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(StopAt(11, signal.SIGTERM), config(tmp_path, tracker="wandb", log_every=1))
    assert wandb["finished"] == 1
    train(Shown(), config(tmp_path, tracker="wandb", log_every=1, resume=True))
    first, second = wandb["init"]
    assert first["id"] == second["id"] == (tmp_path / "training" / RUN_ID).read_text().strip()
    assert second["resume"] == "allow"
    assert wandb["config"]["batch_size"] == 8
    steps = [step for step, values in wandb["lines"] if "loss" in values]
    assert steps == list(range(1, 24))
    said = {name: value for _, values in wandb["lines"] for name, value in values.items()}
    assert said["samples"] == [("image", (6, 9, 3))]
    kind, (counts, edges) = said["norms"]
    assert kind == "histogram"
    assert counts.sum() == 100
    assert (len(counts), len(edges)) == (BINS, BINS + 1)
    train(Shown(), config(tmp_path, tracker="wandb", overwrite=True))
    assert wandb["init"][2]["id"] != first["id"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcg.training.trackers.importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=rf"--tracker {name} needs a package that is missing; run: pip install {name}\.$"
    ):
        train(RegressionStage(), config(tmp_path, tracker=name))


def test_counts() -> None:
    counts, edges, (total, squares) = _count(torch.tensor([1.0, 2.0, 3.0, float("inf")]))  # type: ignore[misc]
    assert (counts.sum(), edges[0], edges[-1], total, squares) == (3, 1, 3, 6, 14)
    constant = _count(torch.ones(5))
    assert constant is not None
    assert constant[0].sum() == 5
    assert _count(torch.full((2,), float("nan"))) is None
    assert _count(torch.zeros(0)) is None


def test_deep_models_show_some_of_their_weights() -> None:
    deep = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(200)))
    found = weights_of({"m": deep, "none": torch.nn.Identity()})
    assert len(found) == MOST_WEIGHTS
    assert {"weights/m/0.weight", "weights/m/199.weight"} <= set(found)


def test_wandb_itself_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(Shown(), config(tmp_path / "with", tracker="wandb", eval_every=10))
    train(Shown(), config(tmp_path / "without", eval_every=10))
    assert_equal_runs(tmp_path / "with", tmp_path / "without")  # watching changes nothing
    (run,) = (tmp_path / "with/training/wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    pictures = [Image.open(path).size for path in run.glob("files/media/images/samples_*.png")]
    assert pictures == [(9, 6)] * 3
