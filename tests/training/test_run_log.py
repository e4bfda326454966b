"""How long a run will take, said once; averages over steps and processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rcg.training.config import TrainingConfig
from rcg.training.loop import train
from rcg.training.run_log import FORECAST_SECONDS, FORECAST_STEPS, Averages, Forecast
from tests.training.stages import RegressionStage


def said(forecast: Forecast, start: int, steps: int, each: float, first: float = 50.0) -> list[tuple[int, str]]:
    """What is said after which step, if the first one takes `first` seconds and the others `each`."""
    found = []
    for i in range(1, steps + 1):
        if (sentence := forecast.after(start + i, first + (i - 1) * each)) is not None:
            found.append((start + i, sentence))
    return found


def test_it_is_said_once_after_twenty_steps_without_the_first() -> None:
    found = said(Forecast(0, 40_000), 0, 200, 0.285)
    assert len(found) == 1
    assert found[0][0] == FORECAST_STEPS + 1
    assert "3 h 10 min for 40,000 steps" in found[0][1]
    assert "done in 1 h, start with --steps 12631" in found[0][1]


def test_slow_steps_are_not_waited_for() -> None:
    found = said(Forecast(0, 1000), 0, 10, 2 * FORECAST_SECONDS)
    assert found[0][0] == 2


def test_a_resumed_run_speaks_of_what_is_left() -> None:
    ((step, sentence),) = said(Forecast(900, 1000), 900, 60, 10.0)
    assert step == 903
    assert "16 min for the 97 steps that are left" in sentence
    assert "--steps 906" in sentence  # a minute is the longest goal within half of it: six steps of ten seconds


@pytest.mark.parametrize(("total", "each"), [(100, 0.5), (30, 4.0), (3, 1.0)])
def test_short_runs_are_left_alone(total: int, each: float) -> None:
    assert said(Forecast(0, total), 0, total, each) == []


def test_the_loop_says_it_unless_somebody_watches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcg.training.run_log.SHORT_SECONDS", 0.0)

    def config(out: Path) -> TrainingConfig:
        return TrainingConfig(out=out, steps=40, batch_size=8, lr=1e-2, precision="fp32", device="cpu", eval_every=40)

    train(RegressionStage(), config(tmp_path / "alone"))
    assert "for 40 steps" in capsys.readouterr().out
    train(RegressionStage(), config(tmp_path / "watched"), watch=lambda step: False)
    captured = capsys.readouterr()
    assert "for 40 steps" not in captured.out
    assert "step/s" not in captured.err


def test_averages_are_those_of_the_whole_batch_and_go_on_after_a_checkpoint() -> None:
    """Two processes, with 3 and 1 of 4 samples."""
    values = {0: [1.0, 2.0, 7.0, 3.0], 1: [5.0, 6.0, 7.0, 9.0]}  # the third step is not good
    good = [torch.tensor(g) for g in (True, True, False, True)]
    mean = sum(0.75 * values[0][i] + 0.25 * values[1][i] for i in (0, 1, 3)) / 3

    def make(rank: int) -> Averages:
        sums = torch.tensor([sum(values[r][:2]) for r in (0, 1)], dtype=torch.float64)
        return Averages(lambda x: x, lambda x: sums, (1.5, 0.5)[rank], rank)

    first = make(1)
    for i in (0, 1):
        first.add({"loss": torch.tensor(values[1][i])}, good[i])
    state = first.state()
    assert state == {"counts": {"loss": 2}, "sums": {"loss": [3.0, 11.0]}}
    resumed = make(1)
    resumed.load(state, 2, torch.device("cpu"))
    for averages in (first, resumed):
        for i in (2, 3):
            averages.add({"loss": torch.tensor(values[1][i])}, good[i])
        assert averages.take()["loss"] == pytest.approx(0.5 * (5 + 6 + 9) / 3)  # its part of the mean over both
        assert averages.take() == {}  # it begins anew
    other = make(0)
    for i in range(4):
        other.add({"loss": torch.tensor(values[0][i])}, good[i])
    assert (other.take()["loss"] + 0.5 * 20 / 3) / 2 == pytest.approx(mean)
    alone = Averages(lambda x: x, lambda x: x, 1.0, 0)
    alone.load(state, 1, torch.device("cpu"))
    alone.add({"loss": torch.tensor(2.0)}, torch.tensor(True))
    assert alone.take()["loss"] == pytest.approx((7 + 2) / 3)  # as if it had computed the mean of both so far
