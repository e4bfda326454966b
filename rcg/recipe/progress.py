"""One progress bar over the whole recipe, and the plan in words."""

from __future__ import annotations

import time
from typing import Any

from tqdm import tqdm

from rcg.core.durations import in_words
from rcg.recipe.plan import Plan, amount_of, seconds_of, seen_by
from rcg.recipe.rates import ELASTIC
from rcg.recipe.schedule import Schedule
from rcg.recipe.settings import Settings

TITLES = {
    "preparation": "looking and measuring",
    "encoder": "encoder",
    "cache": "cache of images and representations",
    "rdm": "RDM",
    "generator": "generator",
    "guidance": "choice of the guidance",
    "images": "images",
    "score": "score",
    "page": "page",
}
"""What people call the stages."""


def clock_time(seconds_from_now: float) -> str:
    """The time of the day then, such as "14:32"; with the day of the week where it is not within 12 hours."""
    form = "%H:%M" if seconds_from_now < 12 * 3600 else "%a %H:%M"
    return time.strftime(form, time.localtime(time.time() + seconds_from_now))


def plan_in_words(plan: Plan, settings: Settings) -> list[str]:
    """The plan as lines of a table, and what speaks for it."""
    size = settings.size(plan["generator"]).recipe
    rdm = settings.rdm_recipe
    details = {
        "encoder": f"MoCo-v3, {amount_of(plan, 'encoder'):,} steps",
        "cache": f"{plan['training_images']:,} images, {settings.views} views of each",
        "rdm": f"flow, width {rdm.width}, depth {rdm.depth}; {amount_of(plan, 'rdm'):,} steps",
        "generator": (
            f"pixel-dit {plan['image_size']} px, width {size.width}, depth {size.depth}; "
            f"{amount_of(plan, 'generator'):,} steps, {seen_by(plan, settings):,} images seen"
        ),
        "guidance": (
            f"scales {', '.join(f'{s:g}' for s in settings.scales)}, {amount_of(plan, 'guidance'):,} images each "
            f"against {plan['reference']:,} held-out ones"
        ),
        "images": f"{plan['images']:,}",
        "score": f"{plan['images']:,} images against {plan['reference']:,}",
        "page": "index.html",
    }
    lines = [
        f"  {TITLES[stage['name']]:<36} {in_words(stage['seconds']):>10}   {details[stage['name']]}"
        for stage in plan["stages"]
    ]
    return [*lines, *(f"  {sentence}" for sentence in plan["why"])]


class Progress:
    """Shows how far the whole is: stages count with the time that they take.

    Args:
        schedule: of the run.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        form = "{desc} {percentage:3.0f}%|{bar}| {postfix}"
        self.bar: Any = tqdm(total=1.0, bar_format=form, dynamic_ncols=True, mininterval=0.5)

    def show(self, name: str, done: int = 0) -> None:
        """Stage `name` has done so many of its steps or images."""
        plan, todo = self.schedule.plan, self.schedule.todo
        amount = amount_of(plan, name)
        part = min(1.0, done / amount) if amount else 0.0
        left = seconds_of(plan, todo) - part * seconds_of(plan, [name])
        spent = self.schedule.spent
        self.bar.set_description_str(TITLES[name], refresh=False)
        counted = f"{done:,} of {amount:,} {'steps' if name in ELASTIC else 'images'}, " if amount else ""
        self.bar.set_postfix_str(f"{counted}ends about {clock_time(left)}", refresh=False)
        self.bar.update(max(0.0, min(1.0, spent / max(1e-9, spent + left)) - self.bar.n))

    def close(self) -> None:
        """Leave the bar as it is; full, if nothing is left to do."""
        if not self.schedule.todo:
            self.bar.set_description_str("done", refresh=False)
            self.bar.set_postfix_str("", refresh=False)
            self.bar.update(1.0 - self.bar.n)
        self.bar.close()
