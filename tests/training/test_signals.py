"""Ctrl-C and SIGTERM, and the step at which processes answer them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rcg.training.loop import train
from rcg.training.signals import StopSignals
from tests.training.stages import RegressionStage
from tests.training.test_loop import config


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_at_once_and_a_second_ctrl_c_ends_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    said = "Stopping after this step, with a checkpoint"

    class Stop(RegressionStage):
        def on_step_end(self, step: int, total_steps: int) -> None:
            if step == 3:
                os.kill(os.getpid(), number)
                assert said in capfd.readouterr().err
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(Stop(), config(tmp_path / "passed-on"))  # both come in one moment
    assert [p.name for p in (tmp_path / "passed-on/training/checkpoints").iterdir()] == ["step-00000003"]
    assert said not in capfd.readouterr().err
    monkeypatch.setattr("rcg.training.signals.AGAIN_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(Stop(), config(tmp_path / "twice"))
    assert not (tmp_path / "twice/training/checkpoints").exists()


@pytest.mark.parametrize(("seconds", "asked"), [(0.01, [1, 10, 20, 30]), (1.0, [1, 3, 6, 9]), (7.0, [1, 2, 3, 4])])
def test_processes_ask_each_other_more_often_where_steps_are_slow(
    seconds: float, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[int] = []
    accelerator: Any = SimpleNamespace(
        num_processes=2, is_main_process=True, device="cpu", reduce=lambda said, how: times.append(step) or said
    )
    signals = StopSignals(accelerator, last=100)
    signals.came = True
    for step in range(1, 31):
        monkeypatch.setattr("time.perf_counter", lambda now=step * seconds: now)
        assert signals.end_after(step) is (step in times)
    assert times[:4] == asked
