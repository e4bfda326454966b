"""From looks, rates and budgets to plans: nothing is run."""

from __future__ import annotations

import dataclasses
import re

import pytest

from rcg.core.durations import parse_duration
from rcg.core.errors import UserError
from rcg.recipe.plan import (
    Plan,
    amount_of,
    expectation,
    least_seconds,
    make_plan,
    propose_seconds,
    seconds_of,
    seen_by,
    tail_amounts,
)
from rcg.recipe.rates import ELASTIC, Rates, costs_of, key, speed_of
from rcg.recipe.settings import default_settings
from tests.recipe.tiny import look, rates

SETTINGS = default_settings()
HOUR = 3600.0


def plan(
    seconds: float, image_size: int | None = None, seen: dict[str, object] | None = None, **changes: object
) -> Plan:
    return make_plan(look(**(seen or {})), rates(**changes), SETTINGS, seconds, image_size=image_size)


def share(made: Plan, name: str, measured: Rates) -> float:
    """Of the time for training steps."""
    steps = {
        "encoder": measured["encoder"]["step"] if measured["encoder"] else 0.0,
        "rdm": measured["rdm"]["step"],
        "generator": speed_of(measured, SETTINGS, SETTINGS.size(made["generator"]), made["image_size"])["step"],
    }
    seconds = {n: amount_of(made, n) * steps[n] for n in ELASTIC}
    return seconds[name] / sum(seconds.values())


@pytest.mark.parametrize("seconds", [900.0, 1800.0, HOUR, 4 * HOUR, 24 * HOUR])
@pytest.mark.parametrize("encoder", [{"step": 0.6, "look": 3.0}, None])
def test_a_plan_fills_its_budget(seconds: float, encoder: object) -> None:
    made = plan(seconds, encoder=encoder)
    assert 0.96 * seconds <= seconds_of(made) <= seconds
    names = [stage["name"] for stage in made["stages"]]
    assert names == ["encoder"] * (encoder is not None) + [
        "cache",
        "rdm",
        "generator",
        "guidance",
        "images",
        "score",
        "page",
    ]
    assert amount_of(made, "cache") == made["training_images"] == 45_000
    assert amount_of(made, "guidance") + amount_of(made, "images") == made["images"] == amount_of(made, "score")
    assert made["reference"] == min(5000, 2 * made["images"])


def test_training_time_is_shared_as_said() -> None:
    both, frozen = rates(), rates(encoder=None)
    assert share(plan(HOUR), "encoder", both) == pytest.approx(0.3, abs=0.01)
    assert share(plan(HOUR), "rdm", both) == pytest.approx(0.08, abs=0.01)
    assert share(plan(HOUR, encoder=None), "generator", frozen) == pytest.approx(0.92, abs=0.01)


def test_the_size_in_the_box_is_taken_where_a_new_one_would_see_too_few_images() -> None:
    new, seconds = plan(400.0), 400.0
    begun = make_plan(look(), rates(), dataclasses.replace(SETTINGS, start=("small", 32)), seconds)
    assert (new["generator"], begun["generator"]) == ("tiny", "small")
    assert "weights in the box" in begun["why"][-1]
    assert not any("weights in the box" in why for why in new["why"])


def test_drawing_and_scoring_have_an_eighth_at_most() -> None:
    for seconds in (900.0, HOUR, 10 * HOUR):
        made = plan(seconds)
        tail = sum(s["seconds"] for s in made["stages"] if s["name"] in ("guidance", "images", "score"))
        assert tail <= 0.12 * seconds
    assert plan(900.0)["images"] < plan(HOUR)["images"] <= plan(10 * HOUR)["images"] == 2000


def test_an_expensive_judge_gets_fewer_images() -> None:
    assert plan(HOUR, score=0.2)["images"] < plan(HOUR)["images"]


@pytest.mark.parametrize(
    ("seconds", "name"), [(330.0, "tiny"), (HOUR, "small"), (16 * HOUR, "base"), (200 * HOUR, "large")]
)
def test_the_generator_grows_with_the_budget(seconds: float, name: str) -> None:
    made = plan(seconds, image_size=32)
    assert made["generator"] == name
    size = SETTINGS.size(name)
    assert seen_by(made, SETTINGS) >= size.images
    larger = SETTINGS.generators[SETTINGS.generators.index(size) + 1 :]
    if larger:  # the next one would have seen too few
        factor = larger[0].work(32) / size.work(32)
        assert seen_by(made, SETTINGS) / factor < 1.1 * larger[0].images


def test_large_pictures_only_if_enough_of_them_are_seen() -> None:
    photos: dict[str, object] = {"short_side": (200, 400, 800), "count": 50_000}
    short, long = plan(HOUR, seen=photos), plan(30 * HOUR, seen=photos)
    assert (short["image_size"], long["image_size"]) == (32, 64)
    assert "at 64 px the generator would see only" in short["why"][0]
    assert seen_by(long, SETTINGS) >= 500_000
    few = photos | {"count": 2000}  # 20 passes of them would be 36,000 images, which is too little for 64 px
    assert all(
        plan(s, seen=few)["image_size"] == 32 or seen_by(plan(s, seen=few), SETTINGS) >= 200_000
        for s in (HOUR, 9 * HOUR)
    )


def test_small_pictures_are_not_blown_up() -> None:
    made = plan(50 * HOUR, seen={"short_side": (40, 64, 64)})
    assert made["image_size"] == 32
    assert "many of the pictures are smaller than 64 px" in " ".join(made["why"])


def test_an_image_size_that_is_asked_for_is_taken() -> None:
    measured = rates()
    assert plan(2 * HOUR, image_size=64)["image_size"] == 64
    assert plan(2 * HOUR, image_size=48)["image_size"] == 48
    guessed = speed_of(measured, SETTINGS, SETTINGS.size("small"), 64)
    assert guessed["step"] > 4 * measured["generators"]["small@32"]["step"]


def test_what_was_measured_wins_over_guesses_and_the_nearest_is_scaled() -> None:
    known = rates()["generators"] | {"small@64": {"step": 9.0, "look": 9.0, "draw": 9.0}}
    measured = rates(generators=known)
    small, base = SETTINGS.size("small"), SETTINGS.size("base")
    assert speed_of(measured, SETTINGS, small, 64)["step"] == 9.0
    ratio = base.work(64) / small.work(64)
    assert speed_of(measured, SETTINGS, base, 64)["draw"] == pytest.approx(9.0 * ratio)
    assert key(small, 64) == "small@64"


def test_too_short_a_budget_is_one_sentence_with_the_least_that_works() -> None:
    with pytest.raises(UserError) as refused:
        plan(60.0)
    text = str(refused.value)
    assert text.count(".") == 1
    (flag,) = re.findall(r"--budget (\w+) or more", text)
    assert make_plan(look(), rates(), SETTINGS, parse_duration(flag))
    least = least_seconds(look(), rates(), SETTINGS) / (1 - SETTINGS.margin)
    made = make_plan(look(), rates(), SETTINGS, 1.001 * least)
    assert all(amount_of(made, name) >= SETTINGS.least[name] for name in ELASTIC)
    with pytest.raises(UserError):
        make_plan(look(), rates(), SETTINGS, 0.98 * least)


def test_time_spent_before_the_plan_counts_in_the_refusal() -> None:
    flags = []
    for spent in (0.0, 1200.0):
        with pytest.raises(UserError) as refused:
            make_plan(look(), rates(), SETTINGS, 30.0, spent=spent)
        flags += re.findall(r"--budget (\w+) or more", str(refused.value))
    assert parse_duration(flags[1]) - parse_duration(flags[0]) == pytest.approx(1.05 * 1200, abs=61)


def test_the_proposal_lets_the_generator_see_half_a_million_images() -> None:
    seconds = propose_seconds(look(), rates(), SETTINGS)
    made = plan(seconds, image_size=32)
    assert made["generator"] == "small"
    assert seen_by(made, SETTINGS) == pytest.approx(500_000, rel=0.1)
    assert seconds % 60 == 0
    slow = rates(generators={"small@32": {"step": 5.0, "look": 20.0, "draw": 0.4}})
    assert propose_seconds(look(), slow, SETTINGS) % 900 == 0


def test_few_images_get_minutes_and_no_promises() -> None:
    few = look(count=120)
    seconds = propose_seconds(few, rates(), SETTINGS)
    made = make_plan(few, rates(), SETTINGS, seconds)
    assert seconds <= 300 < propose_seconds(look(), rates(), SETTINGS) / 4
    assert seen_by(made, SETTINGS) <= 500 * made["training_images"]
    assert "near-copies of yours, as so few are learnt by heart" in made["why"][-1]
    thousand = look(count=1000)
    passes = (
        seen_by(make_plan(thousand, rates(), SETTINGS, propose_seconds(thousand, rates(), SETTINGS)), SETTINGS) / 900
    )
    assert passes == pytest.approx(100, rel=0.25)
    assert not any("Warning" in why for why in made["why"])
    warned = make_plan(few, rates(), SETTINGS, 2 * seconds)["why"][-1]
    assert warned.startswith("Warning: more than 100 passes")
    assert parse_duration(warned.split("--budget ")[1].split()[0]) == seconds
    assert not any("Warning" in why for why in make_plan(look(), rates(), SETTINGS, 2 * seconds)["why"])
    many = [propose_seconds(look(count=count), rates(), SETTINGS) for count in (6000, 50_000)]
    assert many[0] == pytest.approx(many[1], rel=0.1)


def test_images_of_the_scales_are_not_drawn_twice() -> None:
    assert tail_amounts(2000, SETTINGS) == {"guidance": 500, "images": 1500, "score": 2000}
    assert tail_amounts(64, SETTINGS) == {"guidance": 64, "images": 0, "score": 64}


def test_a_guided_image_costs_twice_an_unguided_one() -> None:
    speed = speed_of(rates(), SETTINGS, SETTINGS.size("small"), 32)
    costs = costs_of(look(), rates(), SETTINGS, speed, 100)
    assert costs["guidance"].each == pytest.approx(3.5 * 0.02 + 4 * 0.01)
    assert "encoder" not in costs_of(look(), rates(encoder=None), SETTINGS, speed, 100)


def test_more_images_promise_more() -> None:
    assert len({expectation(n, 50_000) for n in (1000, 100_000, 500_000, 10**7)}) == 4
