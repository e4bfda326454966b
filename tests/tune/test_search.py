"""The search, with a judge that knows where the best settings are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.tune.journal import JOURNAL, Journal
from rcg.tune.judge import GROUPS, Score, difference_error, standard_error
from rcg.tune.search import Plan, Search, fresh_seeds, paired_interval, propose, require_optuna
from rcg.tune.space import Axis
from rcg.tune.table import final_table, search_table

AXES = [Axis("guidance_scale", 1.0, 4.0), Axis("temperature", 0.0, 10.0)]
OWN = {"guidance_scale": 1.0, "temperature": 9.0, "num_inference_steps": 5}


def settings(**given: Any) -> dict[str, Any]:
    return OWN | given


class Stub:
    """A bowl with its bottom at guidance 2.5 and temperature 4, and noise that all settings of one seed share."""

    def __init__(
        self, depth: float = 1.0, noise: float = 0.5, own_noise: float = 0.01, stop_after: int = 10**9
    ) -> None:
        self.depth, self.noise, self.own_noise, self.left = depth, noise, own_noise, stop_after
        self.calls: list[tuple[dict[str, Any], int]] = []

    def __call__(self, given: Mapping[str, Any], seed: int) -> Score:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.calls.append((dict(given), seed))
        bowl = (given["guidance_scale"] - 2.5) ** 2 + ((given["temperature"] - 4) / 3) ** 2
        common = np.random.default_rng(seed).normal(0, self.noise, GROUPS)
        key = [seed, *(int(1000 * given[k]) for k in ("guidance_scale", "temperature"))]
        own = np.random.default_rng(key).normal(0, self.own_noise, GROUPS)
        each = 10 + self.depth * bowl + common + own
        return Score(float(each.mean()), [float(np.delete(each, g).mean()) for g in range(GROUPS)], 1.0)


def search(folder: Path, judge: Any, plan: Plan, *, resume: bool = False, more: bool = False, said: list[str] | None = None, **more_arguments: Any) -> Search:  # fmt: skip
    journal = Journal(folder, resume)
    journal.begin({"seed": plan.seed}, "fid", more)
    say = (lambda s: None) if said is None else said.append
    return Search(AXES, settings, judge, journal, plan, say=say, **more_arguments)


@pytest.fixture(autouse=True)
def _optuna() -> None:
    pytest.importorskip("optuna")


def test_a_planted_optimum_is_found_with_equal_noise_and_confirmed_with_fresh(tmp_path: Path) -> None:
    judge, said = Stub(), []
    plan = Plan(trials=24, finalists=2, repeats=3, seed=7)
    found = search(tmp_path, judge, plan, said=said)
    winner = found.run()
    assert abs(winner["guidance_scale"] - 2.5) < 0.6
    assert abs(winner["temperature"] - 4) < 2
    assert winner["num_inference_steps"] == 5
    seeds = [seed for _, seed in judge.calls]
    assert set(seeds[:-9]) == {7}
    assert sorted(seeds[-9:]) == sorted([8, 9, 10] * 3) == sorted(fresh_seeds(plan) * 3)
    record = json.loads((tmp_path / JOURNAL).read_text())
    assert len(record["trials"]) == 24
    assert record["trials"][0]["settings"] == OWN
    assert record["winner"] == winner
    assert record["comparison"][0]["trial"] == 0
    assert "A trial takes about 1 s: 24 of them, and then 3 settings on 3 fresh seeds" in said[2]
    tables = search_table(found.record, found.tuned) + final_table(found.record, found.tuned)
    assert "0 (own)" in tables
    assert "chosen" in tables


def test_more_may_be_better(tmp_path: Path) -> None:
    winner = search(tmp_path, Stub(depth=-1.0), Plan(trials=24, finalists=2, repeats=3), more=True).run()
    assert abs(winner["guidance_scale"] - 2.5) < 0.6


def test_luck_is_not_taken_for_quality(tmp_path: Path) -> None:
    found = search(tmp_path, Stub(depth=0.0, noise=0.0, own_noise=1.0), Plan(trials=16, finalists=3, repeats=4))
    winner = found.run()
    trials = found.record["trials"]
    assert min(t["value"] for t in trials) < trials[0]["value"]  # the luckiest looks better
    assert winner == OWN


def test_resuming_gives_what_an_undisturbed_search_gives(tmp_path: Path) -> None:
    plan = Plan(trials=10, finalists=2, repeats=2)
    whole = search(tmp_path / "whole", Stub(), plan)
    whole.run()
    for stop in (4, 3, 6):
        judge = Stub(stop_after=stop)
        resumed = search(tmp_path / "parts", judge, plan, resume=(tmp_path / "parts").exists())
        with pytest.raises(KeyboardInterrupt):
            resumed.run()
    judge = Stub()
    last = search(tmp_path / "parts", judge, plan, resume=True)
    assert last.run() == whole.record["winner"]
    assert json.loads((tmp_path / "parts" / JOURNAL).read_text()) == json.loads(
        (tmp_path / "whole" / JOURNAL).read_text()
    )
    assert len(judge.calls) < 10
    longer = search(tmp_path / "parts", Stub(), Plan(trials=12, finalists=2, repeats=2), resume=True)
    longer.run()
    assert len(longer.record["trials"]) == 12


def test_the_quicker_of_equals_is_taken(tmp_path: Path) -> None:
    def judge(given: Mapping[str, Any], seed: int) -> Score:
        noise = np.random.default_rng([seed, int(100 * given["temperature"])]).normal(0, 0.01)
        value = 5.0 if given == OWN else 1.0 + noise
        seconds = 1.0 if given["temperature"] < 5 else 3.0
        return Score(value, [value] * GROUPS, seconds)

    found = search(tmp_path, judge, Plan(trials=12, finalists=6, repeats=3))
    winner = found.run()
    assert winner["temperature"] < 5
    assert {c["seconds"] for c in found.record["comparison"]} == {1.0, 3.0}


def test_a_budget_holds(tmp_path: Path) -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock, said = Clock(), []
    stub = Stub()

    def judge(given: Mapping[str, Any], seed: int) -> Score:
        clock.now += 10.0
        score = stub(given, seed)
        return Score(score.value, score.groups, 10.0)

    plan = Plan(trials=1000, budget=300.0, finalists=2, repeats=2)
    found = search(tmp_path, judge, plan, clock=clock, said=said)
    found.run()
    assert 240 <= clock.now <= 300
    assert "in all" in said[2]
    with pytest.raises(UserError, match=r"--budget 60s holds no search; give at least \d"):
        search(tmp_path / "short", judge, Plan(budget=60.0, finalists=2, repeats=2), clock=clock).run()


def test_no_more_finalists_are_reckoned_with_than_there_can_be(tmp_path: Path) -> None:
    said, judge = list[str](), Stub()
    # with the stub's word for a second a trial: 1 trial more and 3 settings on 2 seeds
    plan = Plan(trials=3, budget=1.1 * (1 + 6) + 0.1, finalists=5, repeats=2)
    search(tmp_path, judge, plan, said=said, clock=lambda: 0.0).run()
    assert "3 of them, and then 3 settings on 2 fresh seeds" in said[2]
    assert len(judge.calls) == 3 + 6


def test_a_search_resumed_in_its_finals_announces_what_is_left_of_them(tmp_path: Path) -> None:
    plan = Plan(trials=5, finalists=2, repeats=2)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Stub(stop_after=5 + 4), plan).run()
    done = len(json.loads((tmp_path / JOURNAL).read_text())["finals"])
    assert 0 < done < 6
    said: list[str] = []
    judge = Stub(stop_after=1)
    short = Plan(trials=5, finalists=2, repeats=2, budget=1.1 * (6 - done))  # enough for these, not for all finals
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, judge, short, resume=True, said=said, clock=lambda: 0.0).run()
    assert said[0] == f"No more is tried; what is left on fresh seeds will take about {6 - done} s."
    with pytest.raises(UserError, match="holds no search; give at least"):
        search(
            tmp_path, judge, Plan(trials=5, finalists=2, repeats=2, budget=0.5), resume=True, clock=lambda: 0.0
        ).run()
    search(tmp_path, Stub(), plan, resume=True).run()
    said.clear()
    search(tmp_path, Stub(stop_after=0), plan, resume=True, said=said).run()
    assert said == []


def test_trials_that_are_all_the_models_own_need_no_finals(tmp_path: Path) -> None:
    class Same(Search):
        def _next(self) -> None:
            self._try(dict(self.settings()), None)

    judge, said, journal = Stub(), list[str](), Journal(tmp_path, False)
    journal.begin({}, "fid", False)
    found = Same(AXES, settings, judge, journal, Plan(trials=3, repeats=2), said.append)
    assert found.run() == OWN
    assert len(judge.calls) == 1
    assert "fresh seed" not in said[-1]
    assert final_table(found.record, found.tuned)


def test_what_came_before_the_search_is_part_of_its_budget(tmp_path: Path) -> None:
    late = search(
        tmp_path, Stub(), Plan(trials=8, budget=100.0, finalists=1, repeats=2), clock=lambda: 500.0, begun=0.0
    )
    with pytest.raises(UserError, match="holds no search"):
        late.run()


def test_proposals_follow_from_what_was_tried_and_choose_among_words() -> None:
    axes = [*AXES, Axis("num_inference_steps", 2, 9, True), Axis("guidance_schedule", choices=("constant", "linear"))]
    own = {"guidance_scale": 1.0, "temperature": 9.0, "num_inference_steps": 5, "guidance_schedule": "linear"}
    one, other = (propose(axes, [(own, 1.0)], 3, Plan(seed=2), False) for _ in range(2))
    assert one == other
    assert one["guidance_schedule"] in axes[3].choices
    assert 2 <= one["num_inference_steps"] <= 9
    assert one != propose(axes, [(own, 1.0)], 4, Plan(seed=2), False)


def test_journals_of_other_searches_are_refused(tmp_path: Path) -> None:
    search(tmp_path, Stub(), Plan(trials=3, finalists=1, repeats=2)).run()
    with pytest.raises(UserError, match="already holds a search; add --resume"):
        search(tmp_path, Stub(), Plan())
    with pytest.raises(UserError, match="another search \\(seed 0, not 1\\)"):
        search(tmp_path, Stub(), Plan(seed=1), resume=True)
    with pytest.raises(UserError, match="no search to resume"):
        search(tmp_path / "none", Stub(), Plan(), resume=True)
    (tmp_path / JOURNAL).write_text('{"format": 1}')
    with pytest.raises(UserError, match="choose another folder"):
        search(tmp_path, Stub(), Plan(), resume=True)


@pytest.mark.parametrize("bad", ["search", "finals", "groups"])
def test_figures_that_are_not_finite_end_it_in_one_sentence(tmp_path: Path, bad: str) -> None:
    stub = Stub()

    def judge(given: Mapping[str, Any], seed: int) -> Score:
        score = stub(given, seed)
        if bad == "groups":
            return Score(score.value, [float("inf")] * GROUPS, 1.0)
        return Score(float("nan"), score.groups, 1.0) if (bad == "finals") == (seed > 0) else score

    with pytest.raises(UserError, match="is not finite; tune another setting or metric"):
        search(tmp_path, judge, Plan(trials=3, finalists=1, repeats=2)).run()


def test_intervals() -> None:
    ours, theirs = [1.0, 2.0, 4.0], [2.0, 2.5, 4.0]
    mean, low, high = paired_interval(ours, theirs, 1)
    assert mean == pytest.approx(-0.5)
    assert high - mean == pytest.approx(mean - low) == pytest.approx(4.302653 * 0.5 / 3**0.5, rel=1e-5)
    assert paired_interval(ours, theirs, 3)[2] > high
    x = np.random.default_rng(0).normal(size=GROUPS)
    means = [float(np.delete(x, g).mean()) for g in range(GROUPS)]
    assert standard_error(means) == pytest.approx(x.std(ddof=1) / GROUPS**0.5)  # of a mean, the usual one
    assert difference_error(means, means) == 0


def test_without_optuna_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install optuna"):
        require_optuna()
