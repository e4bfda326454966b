"""What a resumed run says of another division of its batches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from rcg.core.errors import UserError
from rcg.training.checkpoints import Meta
from rcg.training.loop import train
from rcg.training.resumed import Division, check_identity, say_division
from tests.training.stages import RegressionStage
from tests.training.test_loop import config


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


def test_what_differs_is_named_by_its_flag(tmp_path: Path) -> None:
    model = {"width": 8, "depth": 2, "sizes": [1, 2], "inner": {"heads": 2}}
    begun = {"width": 8, "time_mean": 0.5, "depth": 2, "steps": 9, "data": "a", "batch_size": 4}
    meta = cast(Meta, {"identity": {"model": model, "times": [0.5, 1], "data": "x", "batch_size": 4}})
    (tmp_path / "training").mkdir()
    (tmp_path / "training/config.yaml").write_text(yaml.safe_dump(begun))

    def said(flags: dict[str, Any], **identity: Any) -> str:
        with pytest.raises(UserError) as refused:
            check_identity(meta, {**meta["identity"], **identity}, tmp_path, begun | flags)
        return str(refused.value).partition("(")[2].partition(")")[0]

    assert said({"width": 16, "steps": 5}, model={**model, "width": 16}) == "--width 8 → 16"
    assert said({"time_mean": 1.5}, times=[1.5, 1]) == "--time-mean 0.5 → 1.5"
    both = said({"width": 16, "batch_size": 8}, model={**model, "width": 16}, batch_size=8)
    assert both == "--width 8 → 16, --batch-size 4 → 8"
    assert said({}, data="y") == "data x → y"  # other images in the same place
    assert said({"width": 16}, model={**model, "width": 16}, data="y") == "--width 8 → 16, data x → y"
    assert said({}, model={**model, "inner": {"heads": 4}}) == "model.inner.heads 2 → 4"


def test_another_learning_rate_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(RegressionStage(), config(tmp_path / "run", steps=2, lr=0.01))
    train(RegressionStage(), config(tmp_path / "run", steps=3, lr=0.01, resume=True))
    assert "goes on with" not in capsys.readouterr().out
    train(RegressionStage(), config(tmp_path / "run", steps=4, lr=0.02, clip_grad=1.0, log_every=1, resume=True))
    assert "The run goes on with --lr 0.02, not 0.01, --clip-grad 1.0, not None." in capsys.readouterr().out
    train(RegressionStage(), config(tmp_path / "run", steps=5, lr=0.02, clip_grad=1.0, resume=True))
    assert "goes on with" not in capsys.readouterr().out


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
    with pytest.raises(UserError, match="begun with other settings"):
        check_identity(meta, now, Path("out"))
