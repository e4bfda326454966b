"""What a resumed run says of another division of its batches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest

from rcg.core.errors import UserError
from rcg.training.checkpoints import Meta
from rcg.training.resumed import Division, check_identity, say_division
from tests.training.stages import RegressionStage


@pytest.mark.parametrize("drawn_apart", [False, True])
def test_dropout_that_follows_the_process_is_named(drawn_apart: bool) -> None:
    sentence = say_division(RegressionStage(dropout=0.1), 8, Division(1, 1), Division(2, 1), drawn_apart)
    assert ("what dropout leaves out" in str(sentence)) is drawn_apart


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ((1, 1), (2, 1), None),  # the whole batch, in both
        ((2, 2), (2, 2), None),
        ((1, 2), (2, 2), "finds others among the 4 of a micro-batch"),
        ((2, 1), (1, 2), r"compares 4 at a time, not 8 \(--micro-batch-size 8 makes as many\)"),
        ((1, 4), (2, 1), r"compares 8 at a time, not 2 \(--micro-batch-size 1 makes as many\)"),
    ],
)
def test_what_is_compared_is_named(before: tuple[int, int], now: tuple[int, int], said: str | None) -> None:
    stage, then, today = RegressionStage(), Division(*before), Division(*now)
    assert "compare" not in str(say_division(stage, 8, then, today, False))
    stage.compares = True
    sentence = say_division(stage, 8, then, today, False)
    assert (sentence is None) is (said is None and then.world == today.world)
    assert "a loss that compares" not in str(sentence) if said is None else re.search(said, str(sentence))


@pytest.mark.parametrize(
    ("held", "now", "fits"),
    [
        ({"model": {"width": 8}}, {"model": {"width": 8, "norm_groups": 32}, "optimizer": "adamw"}, True),
        ({"model": {"width": 8}}, {"model": {"width": 8, "norm_groups": 8}}, False),
        ({"model": {"width": 8}}, {"model": {"width": 8, "prediction_type": "v_prediction"}}, False),
        ({"model": {"width": 8}}, {"model": {"width": 8}}, True),
        ({"model": {"width": 8, "norm_groups": 8}}, {"model": {"width": 8, "norm_groups": 8}}, True),
        ({"tokenizer": {"width": 8}}, {"tokenizer": {"width": 8, "flow_decoder": None}}, True),
        ({"tokenizer": "hash"}, {"tokenizer": "other"}, False),
    ],
)
def test_runs_of_before_a_setting_was_there_go_on_with_what_it_was(held: Any, now: Any, fits: bool) -> None:
    meta = cast(Meta, {"identity": held})
    if fits:
        check_identity(meta, now, Path("out"))
        return
    with pytest.raises(UserError, match="was made with"):
        check_identity(meta, now, Path("out"))
