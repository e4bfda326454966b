"""What is drawn from a table: the faults of the published program each have a test here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rcg.core.errors import UserError
from rcg.inversion.choices import Chooser, Place, Variation

LABELS = np.array([0, 1, 0, 1, 0, 1, 1])
TABLE = np.random.default_rng(0).normal(size=(7, 2, 5)).astype(np.float32)


def chooser(seed: int = 0, labels: np.ndarray | None = LABELS, within: Any = None, **variation: Any) -> Chooser:
    return Chooser(7, labels, Variation(**variation), seed, within)


def places(count: int = 60, label: int | None = 1) -> list[Place]:
    return [Place(label, i) for i in range(count)]


@pytest.mark.parametrize("partners", ["class", "any"])
def test_a_partner_is_never_the_image_itself_nor_of_another_class_unless_asked(partners: Any) -> None:
    made = chooser(interpolation=(0.1, 0.4), partners=partners)
    choices = [made.choose(place) for label in (0, 1) for place in places(label=label)]
    assert all(c.partner is not None and c.partner != c.source for c in choices)
    assert all(LABELS[c.source] == c.place.label for c in choices)
    other = [LABELS[c.partner] != LABELS[c.source] for c in choices]
    assert any(other) == (partners == "any")


def test_the_seed_decides_and_is_honoured() -> None:
    first = [chooser(interpolation=(0.0, 0.2), guidance=(1.0, 2.0)).choose(p) for p in places()]
    again = [chooser(interpolation=(0.0, 0.2), guidance=(1.0, 2.0)).choose(p) for p in reversed(places())][::-1]
    other = [chooser(1, interpolation=(0.0, 0.2), guidance=(1.0, 2.0)).choose(p) for p in places()]
    assert first == again
    assert first != other
    assert len({c.image_seed for c in first} | {c.noise_seed for c in first}) == 120


def test_conditions_come_in_turn_and_again_with_other_noise() -> None:
    choices = [chooser().choose(p) for p in places(8)]
    assert [c.source for c in choices] == [1, 3, 5, 6, 1, 3, 5, 6]
    assert choices[0].image_seed != choices[4].image_seed
    assert {chooser().choose(Place(1, 0, attempt)).source for attempt in range(1, 30)} == {1, 3, 5, 6}


def test_every_value_of_a_list_is_used() -> None:
    choices = [chooser(noise=(0.0, 0.1), guidance=(2.0, 3.0, 4.0)).choose(p) for p in places()]
    assert {c.noise for c in choices} == {0.0, 0.1}
    assert {c.guidance for c in choices} == {2.0, 3.0, 4.0}


def test_without_noise_and_partner_a_condition_is_the_learned_one() -> None:
    made = chooser(noise=(0.0,))
    choices = [made.choose(p) for p in places(4)]
    assert torch.equal(made.conditions(TABLE, choices), torch.from_numpy(TABLE[[1, 3, 5, 6]]))


def test_conditions_are_as_the_formula_says_and_know_no_batch() -> None:
    made = chooser(noise=(0.3,), interpolation=(0.25,))
    choices = [made.choose(p) for p in places(5)]
    whole = made.conditions(TABLE, choices)
    single = torch.cat([made.conditions(TABLE, [c]) for c in choices])
    assert torch.equal(whole, single)
    mixed = np.stack([0.75 * TABLE[c.source] + 0.25 * TABLE[c.partner or 0] for c in choices])
    left = (whole.numpy() - mixed) / 0.3
    assert abs(left.std() - 1) < 0.25


def test_a_part_of_the_rows() -> None:
    made = chooser(interpolation=(0.5,), within=[1, 3, 0, 2])
    found = {r for p in places() for c in [made.choose(p)] for r in (c.source, c.partner)}
    assert found == {1, 3}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"labels": None, "interpolation": (0.1,)}, "no labels"),
        ({"within": [0, 2, 1], "interpolation": (0.1,)}, "class 1 has a single image"),
        ({"within": [2], "interpolation": (0.1,), "partners": "any"}, "two images"),
        ({"within": [9]}, "does not have"),
        ({"noise": ()}, "empty list"),
        ({"noise": (-0.1,)}, "noise is -0.1"),
        ({"interpolation": (1.5,)}, "interpolation is 1.5"),
        ({"guidance": (float("nan"),)}, "guidance is nan"),
        ({"partners": "friends"}, "partners is 'friends'"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        chooser(**arguments)
