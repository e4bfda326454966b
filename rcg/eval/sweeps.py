"""A metric of a pipeline's images against one of its settings, each point with few images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rcg.core.errors import UserError
from rcg.eval.evaluate import Evaluator, Given
from rcg.eval.images import LabelChoice, Pipeline, PipelineImages
from rcg.eval.kernels import KID_LEAST
from rcg.eval.metrics import METRICS, needs, parse_metrics
from rcg.eval.references import ImageStats

Setting = Literal["guidance_scale", "temperature", "num_inference_steps", "rdm_num_inference_steps"]
TITLES: dict[Setting, str] = {
    "guidance_scale": "guidance",
    "temperature": "temperature",
    "num_inference_steps": "steps",
    "rdm_num_inference_steps": "RDM steps",
}


@dataclass(frozen=True)
class Sweep:
    """One setting and the values to try."""

    setting: Setting
    values: tuple[float, ...]


def check_metric(metric: str, count: int) -> str:
    """The one metric that a sweep is drawn of, with `count` images at a point.

    Raises:
        UserError: no metric, several, one that needs other images than the generated ones and the reference, or more of them.
    """
    names = parse_metrics([metric])
    if len(names) != 1:
        raise UserError(f"--sweep-metric {metric}: give a single metric.")
    if {"train", "train features", "held-out"} & needs(names):
        possible = [name for name in METRICS if not {"train", "train features", "held-out"} & needs([name])]
        raise UserError(f"--sweep-metric {metric} needs training images; choose among {', '.join(possible)}.")
    if names == ["kid"] and count < KID_LEAST:
        raise UserError(f"--sweep-metric kid needs at least {KID_LEAST} images at a point; raise --sweep-images.")
    return names[0]


def plan_sweeps(
    pipeline: Pipeline,
    sweeps: Sequence[Sweep],
    count: int,
    *,
    seed: int = 0,
    name: str = "pipeline",
    labels: LabelChoice = "random",
    settings: Mapping[str, Any] | None = None,
) -> list[list[PipelineImages]]:
    """The images of every point; nothing is drawn yet. All points have the same seeds, so that only the setting differs.

    Args:
        pipeline, count, seed, name, labels: see `PipelineImages`.
        sweeps: what to try.
        settings: of the pipeline, for all that is not swept.

    Raises:
        UserError: a value that this pipeline cannot use.
    """
    return [
        [
            PipelineImages(
                pipeline, count, seed=seed, name=name, labels=labels, **{**(settings or {}), sweep.setting: value}
            )
            for value in sweep.values
        ]
        for sweep in sweeps
    ]


def run_sweeps(
    evaluator: Evaluator,
    sweeps: Sequence[Sweep],
    planned: Sequence[Sequence[PipelineImages]],
    *,
    reference: Given | ImageStats | None,
    metric: str,
) -> list[dict[str, Any]]:
    """Score every point; a sweep that cannot be computed is left out, with a note.

    Args:
        evaluator: measures all of them.
        sweeps: as given to `plan_sweeps`.
        planned: what that gave.
        reference: real images or, better, their statistics; measured at every point otherwise.
        metric: see `check_metric`.

    Returns:
        Of each sweep its `setting`, the `metric`, the number of `images` at a point, the `seed`, all other `settings`, and
        `points`: a `value` and the `metrics` found there.
    """
    found = []
    for sweep, images in zip(sweeps, planned, strict=True):
        try:
            points = [
                {"value": value, "metrics": evaluator.evaluate(one, reference=reference, metrics=[metric])["metrics"]}
                for value, one in zip(sweep.values, images, strict=True)
            ]
        except UserError as e:
            evaluator.on_note(f"The sweep over {TITLES[sweep.setting]} is left out: {e}")
            continue
        others = {k: v for k, v in images[0].settings.items() if k != sweep.setting}
        found.append(
            {
                "setting": sweep.setting,
                "metric": metric,
                "images": len(images[0]),
                "seed": images[0].seed,
                "settings": others,
                "points": points,
            }
        )
    return found
