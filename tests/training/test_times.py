"""Where the time goes, and the sentence about slow data."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from rcg.training.loop import train
from rcg.training.stage import Batch
from rcg.training.times import PHASES, SLOW_LINES, SLOW_SECONDS, DataWatch, Phase, StepTimes, in_percent, shares
from tests.training.stages import RegressionStage
from tests.training.test_loop import config


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "training/log.jsonl").read_text().splitlines()]


def seconds(**given: float) -> dict[Phase, float]:
    return {phase: given.get(phase, 0.0) for phase in PHASES}


class Clock:
    """In the place of the machine's, whose time goes where other programs take it: a look at it takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.001
        return self.now

    def sleep(self, pause: float) -> None:
        self.now += pause


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("rcg.training.times.time", made)
    # not in a thread of its own, whose pauses would fall into any phase
    monkeypatch.setattr("rcg.training.stream.read_ahead", lambda batches, depth: (batch for batch in batches))
    return made


class Slow(RegressionStage):
    """Waits in one place."""

    def __init__(self, where: str, pause: float, clock: Clock) -> None:
        super().__init__()
        self.where, self.pause, self.clock = where, pause, clock
        inner = self.dataset.batch

        def batch(*arguments: object) -> Batch:
            if where == "data":
                clock.sleep(pause)
            return inner(*arguments)  # type: ignore[arg-type]

        self.dataset.batch = batch  # type: ignore[method-assign]
        net = self.objectives["o0"].net

        def rest(*_: object) -> None:
            clock.sleep(pause)

        if where == "forward":
            net.register_forward_hook(rest)
        if where == "backward":
            net.register_full_backward_hook(rest)

    def prepare(self, batch: Batch) -> Batch:
        if self.where == "prepare":
            self.clock.sleep(self.pause)
        return super().prepare(batch)

    def on_step_end(self, step: int, total_steps: int) -> None:
        if self.where == "optimizer":
            self.clock.sleep(self.pause)


@pytest.mark.parametrize("where", ["data", "prepare", "forward", "backward", "optimizer"])
def test_time_is_found_where_it_goes(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    train(Slow(where, 0.05, clock), config(tmp_path, steps=8, eval_every=100, save_every=100))
    steps = [line for line in lines(tmp_path) if "loss" in line]
    assert all(line[f"time/{where}"] > 0.5 for line in steps), steps
    for line in steps:
        assert sum(v for k, v in line.items() if k.startswith("time/")) == pytest.approx(1, abs=0.01)
    (end,) = [line for line in lines(tmp_path) if "run/seconds" in line]
    assert end["step"] == 8
    assert end[f"run/{where}"] > 0.4
    said = capsys.readouterr()
    assert f"{where} " in said.out + said.err
    assert "samples a second; of the time: " in said.out + said.err


def test_evaluations_are_no_waiting_for_data(tmp_path: Path, clock: Clock) -> None:
    stage = RegressionStage()
    stage.evaluate = lambda seed: clock.sleep(0.2) or {}  # type: ignore[func-returns-value, method-assign]
    train(stage, config(tmp_path, steps=8, eval_every=1))
    assert [line for line in lines(tmp_path) if "loss" in line][-1]["time/other"] > 0.5


def test_slow_data_is_said_once() -> None:
    watch = DataWatch(0)
    slow = seconds(data=SLOW_SECONDS / SLOW_LINES, forward=1.0)
    assert watch.after(slow) is None  # workers start
    found = [watch.after(slow) for _ in range(SLOW_LINES + 2)]
    (said,) = [text for text in found if text]
    assert found.index(said) == SLOW_LINES - 1
    assert "waits for data" in said
    assert "rcg-cache" in said


def test_the_number_of_workers_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = seconds(data=40.0, forward=1.0)
    for own, workers, expected in (
        (6, 0, "--num-workers 5 (now 0)"),
        (6, 5, "more --num-workers than 5 do not help on these 6 cores"),
        (64, 0, "--num-workers 8 (now 0)"),
        (64, 8, "--num-workers 16 (now 8)"),
        (64, 63, "more --num-workers than 63 do not help on these 64 cores"),
    ):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, own=own: set(range(own)), raising=False)
        watch = DataWatch(workers)
        said = [text for _ in range(5) if (text := watch.after(slow))]
        assert expected in said[0]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("fast", [seconds(data=1.0, forward=9.0)] * 9),
        ("short", [seconds(data=1.0)] * 9),
        ("now and then", [seconds(data=20.0), seconds(forward=20.0)] * 9),
        ("nothing", [seconds()] * 9),
    ],
)
def test_other_runs_are_left_alone(name: str, given: list[dict[Phase, float]]) -> None:
    watch = DataWatch(0)
    assert [text for one in given if (text := watch.after(one))] == [], name


def test_reading_begins_anew_and_sums_up() -> None:
    times = StepTimes(torch.device("cpu"))
    times.start()
    time.sleep(0.02)
    times.mark("data")
    first = times.read()
    assert first["data"] >= 0.02
    assert times.read()["data"] == 0
    time.sleep(0.01)
    times.mark("forward")
    second = times.read()
    assert times.total["data"] == first["data"]
    assert times.total["forward"] == second["forward"] >= 0.01


def test_words() -> None:
    found = seconds(data=1.0, forward=98.9, other=0.1)
    assert shares(found) == {"time/data": 0.01, "time/forward": 0.989, "time/other": 0.001}
    assert in_percent(found) == "data 1 %, forward 99 %"
    assert shares(seconds()) == {}
    assert in_percent(seconds()) == ""


class FakeEvent:
    """An event of a device that computes for a second between marks, whatever the program does."""

    now = 0.0
    made = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        FakeEvent.made += 1

    def record(self) -> None:
        FakeEvent.now += 1
        self.time = FakeEvent.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: FakeEvent) -> float:
        return 1000 * (later.time - self.time)


def test_events_of_a_device_are_read_late_and_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    times = StepTimes(torch.device("cuda"))
    times.start()
    for _ in range(5):
        for _ in range(3):
            times.mark("data")
            times.mark("forward")
        found = times.read()
        assert (found["data"], found["forward"], found["other"]) == (3, 3, 0)
    assert times.total["data"] == 15
    assert FakeEvent.made == 7


@pytest.mark.gpu
def test_a_gpu_is_measured_by_its_own_clock() -> None:
    times = StepTimes(torch.device("cuda"))
    a = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    times.start()
    time.sleep(0.2)
    times.mark("data")  # the device stood still
    for _ in range(20):
        a = a @ a / 64
    times.mark("forward")
    time.sleep(0.001)
    times.mark("data")  # the program waited, the device did not
    found = times.read()
    assert found["data"] == pytest.approx(0.2, abs=0.05)
    assert found["forward"] > 0.001
