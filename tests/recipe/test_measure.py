"""Measuring: real steps of every stage, timed by a clock that only steps move."""

from __future__ import annotations

import time

import pytest
import torch

from rcg.recipe.judging import of_encoder
from rcg.recipe.measure import LEAST_STEPS, MOST_STEPS, UNCOUNTED, NoiseData, Stopwatch
from rcg.recipe.stages import generator_stage, new_encoder
from rcg.training.stage import Batch
from tests.recipe.tiny import Ticks, tiny_settings

SETTINGS = tiny_settings()


class Clock:
    """Goes on when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("each", "counted"), [(0.01, MOST_STEPS), (2.0, LEAST_STEPS), (0.3, 4)])
def test_a_step_is_measured_without_the_first_ones(each: float, counted: int) -> None:
    clock = Clock()
    stage = generator_stage(NoiseData(16, 16), SETTINGS, SETTINGS.generators[0], 16, 16, 0)
    steps: list[float] = []
    prepare = stage.prepare

    def slow(batch: Batch) -> Batch:
        steps.append(each if len(steps) > UNCOUNTED else 50.0)  # the first steps take longer
        clock.now += steps[-1]
        return prepare(batch)

    stage.prepare = slow  # type: ignore[method-assign]
    speed = Stopwatch(SETTINGS, "cpu", 0, 1.0, clock).training(stage, SETTINGS.generator)
    assert speed["step"] == pytest.approx(each)
    assert len(steps) <= counted + UNCOUNTED + 1 + 8  # those and what the evaluation prepares


def test_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, queued = Clock(), 0
    stage = generator_stage(NoiseData(16, 16), SETTINGS, SETTINGS.generators[0], 16, 16, 0)
    prepare = stage.prepare

    def queue(batch: Batch) -> Batch:  # as a GPU does: time goes by when somebody waits for it
        nonlocal queued
        queued += 1
        return prepare(batch)

    def wait(device: torch.device) -> None:
        nonlocal queued
        clock.now, queued = clock.now + 0.5 * queued, 0

    stage.prepare = queue  # type: ignore[method-assign]
    monkeypatch.setattr("rcg.recipe.measure.pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    speed = Stopwatch(SETTINGS, "cpu", 0, 1.0, clock).training(stage, SETTINGS.generator)
    assert speed["step"] == pytest.approx(0.5)


def test_every_stage_is_measured() -> None:
    watch = Stopwatch(SETTINGS, "cpu", 0, 0.05, time.perf_counter)
    encoder = new_encoder(SETTINGS, 0)
    rdm_speed, rdm = watch.rdm(16, True)
    generator = watch.generator(SETTINGS.generators[0], 16, 16, rdm)
    found = [watch.new_encoder()["step"], rdm_speed["step"], *generator.values(), rdm_speed["look"]]
    found += [watch.encoding(encoder, 16), watch.scoring(of_encoder(encoder), 16)]
    assert all(0 < seconds < 60 for seconds in found)  # type: ignore[operator]


def test_work_is_done_twice_and_timed_once() -> None:
    calls: list[int] = []
    assert Stopwatch(SETTINGS, "cpu", 0, 1.0, Ticks()).twice(lambda: calls.append(1)) == pytest.approx(0.01)
    assert len(calls) == 2
