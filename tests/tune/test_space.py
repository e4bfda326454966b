"""What can be tuned, and in which range."""

from __future__ import annotations

from typing import Any

import pytest

from rcg.core.errors import UserError
from rcg.tune.space import Axis, open_space, point_of, settings_at
from tests.components import get_dummy_pipeline


def test_by_default_guidance_and_temperature() -> None:
    pipe = get_dummy_pipeline()
    assert open_space((), pipe.settings) == [Axis("guidance_scale", 1.0, 4.0), Axis("temperature", 0.0, 5.0)]
    guided = get_dummy_pipeline(num_classes=3)
    assert [a.name for a in open_space((), guided.settings)] == ["guidance_scale", "temperature", "rdm_guidance_scale"]
    assert [a.name for a in open_space((), get_dummy_pipeline(condition="none").settings)] == ["temperature"]


def test_named_settings_and_ranges() -> None:
    pipe = get_dummy_pipeline()
    words = ["guidance-scale=1.5:3", "num_inference_steps", "guidance_interval", "guidance_schedule"]
    axes = open_space(words, pipe.settings)
    assert axes[0] == Axis("guidance_scale", 1.5, 3.0)
    assert axes[1] == Axis("num_inference_steps", 1, 10, True)
    assert [a.name for a in axes[2:]] == ["guidance_from", "guidance_to", "guidance_schedule"]
    assert axes[1].text() == "num_inference_steps 1 to 10"
    assert open_space(["rdm_num_inference_steps=2:9"], pipe.settings) == [Axis("rdm_num_inference_steps", 2, 9, True)]
    (steps,) = open_space(
        ["num_inference_steps"], lambda **given: pipe.settings(**({"num_inference_steps": 16} | given))
    )
    assert steps.high == 16  # no more steps than tokens


def test_points_and_settings_are_two_ways_to_say_it() -> None:
    pipe = get_dummy_pipeline()
    axes = open_space(
        ["guidance_scale", "guidance_interval", "num_inference_steps", "guidance_schedule"], pipe.settings
    )
    point = {"guidance_scale": 2.34567, "guidance_from": 0.876, "guidance_to": 0.25, "num_inference_steps": 4, "guidance_schedule": "cosine"}  # fmt: skip
    settings = settings_at(point)
    assert settings == {"guidance_scale": 2.35, "guidance_interval": [0.25, 0.88], "num_inference_steps": 4, "guidance_schedule": "cosine"}  # fmt: skip
    own = point_of(axes, pipe.settings())
    assert own == {"guidance_scale": 1.0, "guidance_from": 0.0, "guidance_to": 1.0, "num_inference_steps": 5, "guidance_schedule": "linear"}  # fmt: skip
    assert settings_at(own) == {k: pipe.settings()[k] for k in settings}
    assert point_of([Axis("guidance_scale", 1.5, 3)], pipe.settings()) is None


def test_guidance_that_is_on_may_be_shaped_alone() -> None:
    pipe = get_dummy_pipeline()
    axes = open_space(["guidance_interval"], lambda **given: pipe.settings(**({"guidance_scale": 3.0} | given)))
    assert [a.name for a in axes] == ["guidance_from", "guidance_to"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["colour"], "no setting 'colour'"),
        (["temperature", "temperature=1:2"], "twice"),
        (["guidance_scale=2"], "no range"),
        (["guidance_scale=a:b"], "no range"),
        (["guidance_scale=3:1"], "lower end must come first"),
        (["guidance_scale=-1:1"], "lower end must come first"),
        (["guidance_scale=nan:1"], "lower end must come first"),
        (["num_inference_steps=1.5:3"], "whole numbers"),
        (["num_inference_steps=2:100"], "only 16 tokens"),
        (["guidance_interval=0:1"], "takes no range"),
        (["guidance_schedule=0:1"], "takes no range"),
        (["rdm_guidance_scale"], "no null class"),
        (["temperature", "guidance_interval"], "guidance_interval changes nothing, as guidance is off"),
        (["guidance_schedule"], "name guidance_scale, too"),
    ],
)
def test_what_cannot_be_tuned(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_space(words, get_dummy_pipeline().settings)


def test_models_without_it() -> None:
    def settings(**given: Any) -> dict[str, Any]:
        if given.get("guidance_scale", 1.0) != 1.0 or "rdm_guidance_scale" in given:
            raise UserError("no guidance here.")
        return {"temperature": None, "guidance_scale": 1.0, "num_inference_steps": 8} | given

    with pytest.raises(UserError, match="neither guidance nor a temperature"):
        open_space((), settings)
    with pytest.raises(UserError, match="no temperature"):
        open_space(["temperature"], settings)
    with pytest.raises(UserError, match="no guidance here"):
        open_space(["guidance_schedule"], settings)
