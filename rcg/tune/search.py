"""The search: optuna proposes settings, the best few are compared with the model's own on fresh seeds, and one is chosen.

In the search all settings are scored on images from the same noise, so that differences between them are differences of the
settings. But the best of many trials is also the luckiest. So finalists are scored again, with seeds that the search has not
seen, beside the model's own settings; only a finalist whose differences from them are clear is taken.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rcg.core.durations import as_flag, in_words
from rcg.core.errors import UserError
from rcg.core.rng import derive_seed
from rcg.tune.journal import Comparison, Final, Journal, Trial
from rcg.tune.judge import Judge, Score
from rcg.tune.space import FROM, TO, Axis, Point, Settings, point_of, settings_at

CONFIDENCE = 0.95
QUICKER = 0.9
"""Of equally good finalists one is taken for its speed if it needs less than this share of the other's time."""
LEAST_TRIALS = 3
SAFETY = 1.1
"""Trials take a little longer than the first ones did."""


@dataclass(frozen=True)
class Plan:
    """How much is tried.

    Attributes:
        trials: at most, the model's own settings among them.
        budget: seconds for all of it; None: as long as it takes.
        finalists: that are compared with the model's own settings.
        repeats: fresh seeds for each of them.
        seed: of the search's images and proposals; fresh seeds follow it.
    """

    trials: int = 24
    budget: float | None = None
    finalists: int = 3
    repeats: int = 4
    seed: int = 0


def require_optuna() -> Any:
    """The optimiser; `UserError` where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("rcg-tune needs optuna; run: pip install optuna.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def propose(axes: Sequence[Axis], tried: Sequence[tuple[Point, float]], number: int, plan: Plan, more: bool) -> Point:
    """The next point of a search, by optuna's tree-structured Parzen estimator.

    It follows from the plan's seed, the number and what was tried; so a resumed search goes on as if it had never stopped.

    Args:
        axes: of the search.
        tried: points and their values.
        number: of the trial.
        plan: its seed, and its trials, a third of which (at most 10) are drawn at random.
        more: whether more is better.
    """
    optuna = require_optuna()
    distributions = {axis.name: _distribution(optuna, axis) for axis in axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # multivariate is called experimental
        sampler = optuna.samplers.TPESampler(
            seed=derive_seed(plan.seed, 11, number) % 2**32,
            multivariate=True,
            n_startup_trials=max(2, min(10, plan.trials // 3)),
        )
        study = optuna.create_study(direction="maximize" if more else "minimize", sampler=sampler)
        for point, value in tried:
            study.add_trial(optuna.trial.create_trial(params=point, distributions=distributions, value=value))
        return dict(study.ask(distributions).params)


def _distribution(optuna: Any, axis: Axis) -> Any:
    if axis.choices:
        return optuna.distributions.CategoricalDistribution(axis.choices)
    if axis.whole:
        return optuna.distributions.IntDistribution(int(axis.low), int(axis.high))
    return optuna.distributions.FloatDistribution(axis.low, axis.high)


class Search:
    """A search that goes on from what its journal holds.

    Args:
        axes: see `rcg.tune.space.open_space`.
        settings: the pipeline's, see `rcg.tune.space.Settings`.
        judge: scores settings.
        journal: what has been tried.
        plan: how much is to be.
        say: called with sentences about what goes on.
        clock: tells the time in seconds.
        begun: what it told when the budget began to run; None: now.

    Attributes:
        names: of the settings that are tuned.
    """

    def __init__(
        self,
        axes: Sequence[Axis],
        settings: Settings,
        judge: Judge,
        journal: Journal,
        plan: Plan,
        say: Callable[[str], None] = lambda sentence: None,
        clock: Callable[[], float] = time.monotonic,
        begun: float | None = None,
    ) -> None:
        self.axes, self.settings, self.judge, self.journal, self.plan = axes, settings, judge, journal, plan
        self._say, self._clock, self._begun = say, clock, clock() if begun is None else begun
        self.record = journal.record
        self.sign = -1.0 if self.record["more_is_better"] else 1.0
        ends = {FROM: "guidance_interval", TO: "guidance_interval"}
        self.names = list(dict.fromkeys(ends.get(axis.name, axis.name) for axis in axes))

    def run(self) -> dict[str, Any]:
        """Search, compare, choose.

        Returns:
            The winner's settings: the model's own where no finalist is clearly better.

        Raises:
            UserError: the budget does not hold the least search.
        """
        if not self.record["trials"]:
            self._try(dict(self.settings()), None)
        if len(self.record["trials"]) == 1:
            self._next()  # a guided trial takes longer than one without, so that two tell more than one
        self._announce()
        while len(self.record["trials"]) < self.plan.trials and self._fits():
            self._next()
        winner = self._decide(self._finalists())
        self.record["winner"] = winner
        self.journal.save()
        return winner

    def _next(self) -> None:
        tried = [(t["point"], t["value"]) for t in self.record["trials"] if t["point"] is not None]
        point = propose(self.axes, tried, len(self.record["trials"]), self.plan, self.record["more_is_better"])
        self._try(dict(self.settings(**settings_at(point))), point)

    def _try(self, settings: dict[str, Any], point: Point | None) -> None:
        number = len(self.record["trials"])
        if number == 0:
            point = point_of(self.axes, settings)
        same = next((t for t in self.record["trials"] if t["settings"] == settings), None)
        if same is not None:
            value, groups, seconds = same["value"], same["groups"], same["seconds"]
        else:
            score = self._score(settings, self.plan.seed)
            value, groups, seconds = score.value, score.groups, score.seconds
        trial: Trial = {"point": point, "settings": settings, "value": value, "groups": groups, "seconds": seconds}
        self.record["trials"].append(trial)
        self.record["comparison"], self.record["winner"] = [], None
        self.journal.save()
        name = "the model's own settings" if number == 0 else ", ".join(self.tuned(settings))
        self._say(f"trial {number}: {self.record['metric']} {value:.4g} ({name})")

    def _score(self, settings: Mapping[str, Any], seed: int) -> Score:
        score = self.judge(settings, seed)
        if not all(map(math.isfinite, (score.value, *score.groups))):
            raise UserError(f"{self.record['metric']} of {settings} is not finite; tune another setting or metric.")
        return score

    def tuned(self, settings: Mapping[str, Any]) -> list[str]:
        """The tuned ones among settings, as text."""
        return [f"{name} {_text(settings[name])}" for name in self.names]

    # ------------------------------------------------------------------ time

    @property
    def _seconds(self) -> float:
        return fmean(t["seconds"] for t in self.record["trials"])

    @property
    def _final_seconds(self) -> float:
        """Of the comparison on fresh seeds, whichever the finalists will be."""
        return (self._most_finalists + 1) * self.plan.repeats * self._seconds

    @property
    def _most_finalists(self) -> int:
        return min(self.plan.finalists, self.plan.trials - 1)  # the first trial is the model's own settings

    def _finals_left(self) -> int:
        """How often the comparison scores, if nothing more is tried before it: without what the journal holds of it."""
        held = [(final["settings"], final["seed"]) for final in self.record["finals"]]
        finalists = self._finalists()
        settings = [self.record["trials"][i]["settings"] for i in ([0, *finalists] if finalists else [])]
        return sum((one, seed) not in held for one in settings for seed in fresh_seeds(self.plan))

    def _announce(self) -> None:
        trial, plan, done = self._seconds, self.plan, len(self.record["trials"])
        finals = f"{self._most_finalists + 1} settings on {plan.repeats} fresh seeds"
        ended = done >= plan.trials or (done >= LEAST_TRIALS and not self._fits())
        rest = self._finals_left() * trial if ended else self._final_seconds
        if not rest:
            return
        least = (self._elapsed + max(LEAST_TRIALS - done, 0) * trial + rest) * SAFETY
        if plan.budget is not None and least > plan.budget:
            raise UserError(
                f"a trial takes {in_words(trial)}, so that --budget {as_flag(plan.budget)} holds no search; give at least "
                f"{as_flag(least)} (with --resume), or fewer --num-images, --finalists or --repeats."
            )
        if ended:
            self._say(f"No more is tried; what is left on fresh seeds will take about {in_words(rest)}.")
            return
        if plan.budget is None:
            self._say(
                f"A trial takes about {in_words(trial)}: {plan.trials} of them, and then {finals}, will take about "
                f"{in_words((plan.trials - done) * trial + rest)} more."
            )
            return
        fit = min(plan.trials, done + int((plan.budget - self._elapsed - rest) / (SAFETY * trial)))
        fit = max(fit, done)
        self._say(
            f"A trial takes about {in_words(trial)}: about {fit} of them, and then {finals}, will take about "
            f"{in_words(min(plan.budget, self._elapsed + (fit - done) * trial + rest))} in all."
        )

    @property
    def _elapsed(self) -> float:
        return self._clock() - self._begun

    def _fits(self) -> bool:
        """Whether one more trial leaves time for the finals."""
        if self.plan.budget is None:
            return True
        return self._elapsed + SAFETY * (self._seconds + self._final_seconds) <= self.plan.budget

    # ------------------------------------------------------------------ finals

    def _finalists(self) -> list[int]:
        """Numbers of the best trials, each setting once, without the model's own."""
        trials = self.record["trials"]
        order = sorted(range(1, len(trials)), key=lambda i: (self.sign * trials[i]["value"], i))
        chosen: list[int] = []
        for i in order:
            if all(trials[i]["settings"] != trials[j]["settings"] for j in [0, *chosen]):
                chosen.append(i)
        return chosen[: self.plan.finalists]

    def _final(self, settings: dict[str, Any], seed: int) -> Final:
        found = next((f for f in self.record["finals"] if f["settings"] == settings and f["seed"] == seed), None)
        if found is None:
            score = self._score(settings, seed)
            found = {
                "settings": settings,
                "seed": seed,
                "value": score.value,
                "groups": score.groups,
                "seconds": score.seconds,
            }
            self.record["finals"].append(found)
            self.journal.save()
            self._say(
                f"fresh seed {seed}: {self.record['metric']} {score.value:.4g} ({', '.join(self.tuned(settings))})"
            )
        return found

    def _decide(self, finalists: Sequence[int]) -> dict[str, Any]:
        trials, seeds = self.record["trials"], fresh_seeds(self.plan)
        if not finalists:  # all trials are the model's own settings: there is nothing to compare them with
            return trials[0]["settings"]
        results: dict[int, list[Final]] = {i: [] for i in [0, *finalists]}
        for seed in seeds:  # seed by seed, so that what is there after a kill is of all of them
            for i, found in results.items():
                found.append(self._final(trials[i]["settings"], seed))
        defaults = [f["value"] for f in results[0]]
        compared: list[Comparison] = []
        for i, found in results.items():
            values = [f["value"] for f in found]
            mean, low, high = paired_interval(values, defaults, len(finalists))
            better = i > 0 and (low > 0 if self.record["more_is_better"] else high < 0)
            compared.append(
                {
                    "trial": i,
                    "settings": trials[i]["settings"],
                    "mean": fmean(values),
                    "deviation": stdev(values),
                    "difference": mean,
                    "interval": (low, high),
                    "seconds": fmean(f["seconds"] for f in found),
                    "better": better,
                }
            )
        self.record["comparison"] = compared
        clear = [c for c in compared if c["better"]]
        if not clear:
            return trials[0]["settings"]
        best = min(clear, key=lambda c: self.sign * c["mean"])
        for other in sorted(clear, key=lambda c: c["seconds"]):
            ours, theirs = ([f["value"] for f in results[c["trial"]]] for c in (other, best))
            _, low, high = paired_interval(ours, theirs, 1)
            if low <= 0 <= high and other["seconds"] < QUICKER * best["seconds"]:
                return other["settings"]
        return best["settings"]


def fresh_seeds(plan: Plan) -> list[int]:
    """Seeds of the finals: they follow the search's own, and never begin with it."""
    return [(plan.seed + 1 + i) % 2**63 for i in range(plan.repeats)]


def paired_interval(ours: Sequence[float], theirs: Sequence[float], comparisons: int) -> tuple[float, float, float]:
    """Mean and confidence interval of the differences ours - theirs, pair by pair (Student's t).

    Args:
        ours, theirs: at least 2 values each.
        comparisons: of how many such intervals all shall hold together with 95 % (Bonferroni).
    """
    from scipy.stats import t

    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, count = fmean(differences), len(differences)
    half = float(t.ppf(1 - (1 - CONFIDENCE) / (2 * comparisons), count - 1)) * stdev(differences) / math.sqrt(count)
    return mean, mean - half, mean + half


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else value if isinstance(value, str) else json.dumps(value)
