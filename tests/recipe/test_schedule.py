"""The announced end on simulated clocks: machines that are slower or quicker than measured, load that comes and goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rcg.recipe.plan import amount_of, make_plan, seconds_of
from rcg.recipe.rates import ELASTIC, costs_of, speed_of
from rcg.recipe.schedule import Schedule
from rcg.recipe.settings import default_settings
from tests.recipe.tiny import look, rates

SETTINGS = default_settings()
Slowness = Callable[[str, float], float]


class Machine:
    """Carries out a schedule as `Runner` does, on a clock of its own; stages take longer or shorter than measured."""

    def __init__(self, budget: float, slowness: Slowness, spent: float = 20.0) -> None:
        self.now = 1000.0
        self.slowness, seen, measured = slowness, look(), rates()
        plan = make_plan(seen, measured, SETTINGS, budget - spent, spent=spent)
        self.announced = spent + seconds_of(plan)
        self.schedule = Schedule(
            plan, seen, measured, SETTINGS, self.announced, spent, {"preparation": spent}, lambda: self.now
        )
        speed = speed_of(measured, SETTINGS, SETTINGS.size(plan["generator"]), plan["image_size"])
        self.costs = costs_of(seen, measured, SETTINGS, speed, plan["reference"])

    def work(self, name: str, seconds: float) -> None:
        self.now += seconds * self.slowness(name, self.now - 1000.0)

    def step(self, name: str, until: float | None = None) -> None:
        """One stage, with its reviews if it is trained."""
        schedule, cost = self.schedule, self.costs[name]
        self.work(name, cost.fixed)
        if name not in ELASTIC:
            self.work(name, cost.each * amount_of(schedule.plan, name))
        done = 0
        while name in ELASTIC and done < (steps := amount_of(schedule.plan, name)):
            due = schedule.next_review(name, done) or steps
            begun = self.now
            for _ in range(due - done):
                self.work(name, cost.each)
            if due < steps:
                schedule.review(name, due, (self.now - begun) / (due - done))
            done = due
        schedule.finish(name)

    def run(self) -> float:
        """The real end as a multiple of the announced one."""
        while todo := self.schedule.todo:
            self.step(todo[0])
        return self.schedule.spent / self.announced


@pytest.mark.parametrize("budget", [900.0, 3600.0, 36000.0])
def test_a_machine_as_measured_ends_as_announced(budget: float) -> None:
    assert Machine(budget, lambda name, now: 1.0).run() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("factor", [0.6, 0.8, 1.3, 1.8])
def test_a_machine_slower_or_quicker_than_measured_still_ends_then(factor: float) -> None:
    assert Machine(3600.0, lambda name, now: factor).run() == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize("stage", ["encoder", "cache", "rdm", "generator"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_stage_that_was_misjudged_is_made_up_for(stage: str, factor: float) -> None:
    assert Machine(3600.0, lambda name, now: factor if name == stage else 1.0).run() == pytest.approx(1.0, abs=0.05)


def test_load_that_comes_in_the_middle_is_made_up_for() -> None:
    machine = Machine(3600.0, lambda name, now: 2.0 if 1500 < now < 2400 else 1.0)
    assert machine.run() == pytest.approx(1.0, abs=0.06)


def test_a_slow_stage_does_not_eat_the_time_of_the_next() -> None:
    machine = Machine(3600.0, lambda name, now: 4.0 if name == "encoder" else 1.0)
    planned = {s["name"]: s["amount"] for s in machine.schedule.plan["stages"]}
    assert machine.run() == pytest.approx(1.0, abs=0.05)
    assert amount_of(machine.schedule.plan, "encoder") < 0.5 * planned["encoder"]
    assert amount_of(machine.schedule.plan, "generator") > 0.7 * planned["generator"]


def test_late_load_draws_fewer_images() -> None:
    machine = Machine(1800.0, lambda name, now: 3.0 if name == "generator" and now > 1350 else 1.0)
    planned = machine.schedule.plan["images"]
    ratio = machine.run()
    assert machine.schedule.plan["images"] < planned
    assert amount_of(machine.schedule.plan, "score") == machine.schedule.plan["images"]
    assert ratio < 1.2


def test_every_stage_gets_its_least_whatever_happens() -> None:
    machine = Machine(900.0, lambda name, now: 300.0 if name == "encoder" else 1.0)
    machine.step("encoder")
    assert machine.schedule.left < 0
    for name in ELASTIC[1:]:
        assert amount_of(machine.schedule.plan, name) == SETTINGS.least[name]
    assert machine.schedule.plan["images"] > 0


def test_times_of_stages_add_up_over_an_interruption() -> None:
    machine = Machine(1800.0, lambda name, now: 1.2)
    machine.step("encoder")
    old = machine.schedule
    spent, took = old.spent + 7.0, dict(old.took)  # killed seven seconds into the next stage
    machine.now += 5000.0
    machine.schedule = Schedule(
        old.plan, old.look, old.rates, SETTINGS, machine.announced, spent, took, lambda: machine.now
    )
    assert machine.schedule.todo[0] == "cache"
    assert machine.run() == pytest.approx(1.0, abs=0.08)
    assert sum(machine.schedule.took.values()) == pytest.approx(machine.schedule.spent)


def test_reviews_are_due_at_shares_of_the_steps() -> None:
    schedule = Machine(3600.0, lambda name, now: 1.0).schedule
    steps = amount_of(schedule.plan, "generator")
    assert schedule.next_review("generator", 0) == round(0.05 * steps)
    assert schedule.next_review("generator", round(0.05 * steps)) == round(0.25 * steps)
    assert schedule.next_review("generator", steps - 1) is None
