"""Keeping to the announced end: what is left of the time is shared out anew after each stage, and within the longest one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rcg.recipe.look import Look
from rcg.recipe.plan import Draft, Plan, StagePlan, seconds_of, share_out, stage_plans, tail_amounts
from rcg.recipe.rates import ELASTIC, Rates
from rcg.recipe.settings import Settings


class Schedule:
    """The plan of a run and its clock.

    Args:
        plan: as made or last changed; each change is a new one.
        look, rates, settings: of this run.
        seconds: the announced length of the whole run, what was spent before this process included.
        spent: seconds before this process.
        took: seconds of what is finished, preparation included; together the time until then.
        clock: tells the time in seconds; the run goes on as it is asked for the first time.
    """

    def __init__(
        self,
        plan: Plan,
        look: Look,
        rates: Rates,
        settings: Settings,
        seconds: float,
        spent: float,
        took: Mapping[str, float],
        clock: Callable[[], float],
    ) -> None:
        self.plan, self.look, self.rates, self.settings, self.seconds = plan, look, rates, settings, seconds
        self.took = dict(took)
        self._clock, self._start = clock, clock() - spent

    @property
    def spent(self) -> float:
        """Seconds of the run so far, without its interruptions."""
        return self._clock() - self._start

    @property
    def left(self) -> float:
        """Seconds until the announced end."""
        return self.seconds - self.spent

    @property
    def todo(self) -> list[str]:
        """Names of the stages that are not finished, in their order."""
        return [stage["name"] for stage in self.plan["stages"] if stage["name"] not in self.took]

    def finish(self, name: str) -> None:
        """The stage under way is finished: share out what is left among the others.

        Stages that train get as many steps as the time allows (see `share_out`); where time is short after the last of
        them, fewer images are drawn.
        """
        self.took[name] = self.spent - sum(self.took.values())
        todo = self.todo
        size = self.settings.size(self.plan["generator"])
        draft = Draft(self.look, self.rates, self.settings, self.plan["image_size"], size, self.plan["images"])
        images = self.plan["images"]
        if "guidance" in todo and not any(stage in todo for stage in ELASTIC):
            images = self._images_in(draft, self.left)
        fixed = draft.fixed | tail_amounts(images, self.settings)
        costs = {stage: cost for stage, cost in draft.costs.items() if stage in todo}
        amounts = share_out(self.left, costs, fixed, self.settings)
        done = [stage for stage in self.plan["stages"] if stage["name"] in self.took]
        self.plan = {**self.plan, "images": images, "stages": done + stage_plans(amounts, costs)}

    def _images_in(self, draft: Draft, seconds: float) -> int:
        """The largest number of images, at most that of the plan, which can be drawn and scored in so many seconds."""
        planned = self.plan["images"]
        for images in (planned, *(n for n in self.settings.image_counts if n < planned)):
            amounts = tail_amounts(images, self.settings)
            if sum(draft.costs[name].seconds(amounts[name]) for name in amounts) <= seconds:
                return images
        return min(planned, self.settings.image_counts[-1])

    def review(self, name: str, done: int, seconds_a_step: float) -> int:
        """Set the length of the training stage that is under way anew.

        A stage that others are trained after keeps to its own time; the last one has all that is left.

        Args:
            name: of the stage.
            done: its steps so far.
            seconds_a_step: as they really were, everything counted in.

        Returns:
            the new number of its steps; the plan has it, too.
        """
        so_far, later = self.spent - sum(self.took.values()), self.todo[1:]
        if any(stage in later for stage in ELASTIC):
            room = seconds_of(self.plan, [name]) - so_far
        else:
            room = self.left - seconds_of(self.plan, later)
        steps = max(done + 1, self.settings.least[name], done + int(room / seconds_a_step))
        changed: StagePlan = {"name": name, "amount": steps, "seconds": so_far + (steps - done) * seconds_a_step}
        self.plan = {**self.plan, "stages": [changed if s["name"] == name else s for s in self.plan["stages"]]}
        return steps

    def next_review(self, name: str, done: int) -> int | None:
        """The step of a training stage at which `review` is due next, None if none is."""
        steps = next(s["amount"] for s in self.plan["stages"] if s["name"] == name)
        due = [max(1, round(share * steps)) for share in self.settings.reviews[name]]
        return next((step for step in due if done < step < steps), None)
