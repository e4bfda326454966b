"""What a search asks: how good the images of some settings are, of a seed, and how sure that is."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from rcg.core.errors import UserError
from rcg.eval.evaluate import Evaluator, Given
from rcg.eval.frechet import FrechetTo
from rcg.eval.images import PipelineImages
from rcg.eval.measure import Wanted, measure
from rcg.eval.metrics import METRICS, Sides, compute_metrics, metric_name
from rcg.eval.references import ImageStats
from rcg.eval.traps import check_sizes
from rcg.pipeline import RCGPipeline

GROUPS = 8
"""Of the images of a trial, each left out once to see how sure its figure is."""
FIGURES: dict[str, tuple[str, bool]] = {
    "fid": ("fid", False),
    "kid": ("kid", False),
    "mind": ("mind", False),
    "cmmd": ("cmmd", False),
    "precision": ("prc", True),
    "recall": ("prc", True),
    "f_score": ("prc", True),
    "density": ("dc", True),
    "coverage": ("dc", True),
}
"""Figures to tune by: the metric that gives each, and whether more is better."""


@dataclass(frozen=True)
class Score:
    """What one setting reached with one seed.

    Attributes:
        value: the figure.
        groups: the figure without each of the groups of images: differences of two of these lists, taken with the same seed,
            say how sure a difference is (the jackknife of Quenouille and Tukey).
        seconds: that it took.
    """

    value: float
    groups: list[float]
    seconds: float


class Judge(Protocol):
    """Scores settings: the same images' noise for every setting with the same seed."""

    def __call__(self, settings: Mapping[str, Any], seed: int) -> Score:
        """The score of a pipeline's settings with the images of a seed."""
        ...


def check_figure(name: str) -> str:
    """A figure to tune by; `UserError` for a name that is none."""
    if name.lower() not in FIGURES:
        raise UserError(f"--metric: {name!r} is nothing to tune by; choose among {', '.join(FIGURES)}.")
    return name.lower()


def standard_error(groups: Sequence[float]) -> float:
    """The jackknife's standard error of a figure, of its values without each group in turn."""
    count = len(groups)
    return math.sqrt((count - 1) / count * float(np.square(np.asarray(groups) - np.mean(groups)).sum()))


def difference_error(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The standard error of the difference of two figures with the same noise: what both share cancels out."""
    return standard_error([a - b for a, b in zip(ours, theirs, strict=True)])


class ImageJudge:
    """Draws images with a pipeline and compares them with a reference: see `Judge`.

    Args:
        pipe: where it is to compute.
        evaluator: measures; its extractor decides what the figure is called.
        reference: real images or their statistics, see `Evaluator`.
        figure: one of `FIGURES`.
        count: images of a trial.
        name: of the pipeline, for messages.

    Raises:
        UserError: a figure that the extractor or the reference does not give, or too few images.
    """

    def __init__(
        self, pipe: RCGPipeline, evaluator: Evaluator, reference: Given, figure: str, count: int, name: str = "pipeline"
    ) -> None:
        self.figure = check_figure(figure)
        self.metric, self.more_is_better = FIGURES[self.figure]
        self.name = metric_name(self.figure, evaluator.extractor.name)
        self.pipe, self.evaluator, self.count, self.source = pipe, evaluator, count, name
        if self.metric == "cmmd" and evaluator.extractor.name != "clip":
            raise UserError("--metric cmmd is a distance of CLIP embeddings; use --extractor clip.")
        self.reference = evaluator.measure_reference(reference, [self.metric])
        if "reference features" in METRICS[self.metric].needs and self.reference.features is None:
            raise UserError(
                f"--metric {self.figure} needs the features of the reference, but {reference} holds only their mu and sigma; "
                "give the images, or tune by fid."
            )
        self._frechet = FrechetTo(self.reference.mu, self.reference.sigma) if self.metric == "fid" else None
        least = 2 * GROUPS if self.metric != "kid" else math.ceil(50 * GROUPS / (GROUPS - 1))
        if count < least:
            raise UserError(f"--num-images {count} is too few for {self.figure}; draw at least {least} a trial.")

    def _figure(self, features: np.ndarray) -> float:
        if self._frechet is not None:
            return self._frechet(features)
        extractor = self.evaluator.extractor.name
        sides = Sides(ImageStats.of(features, extractor), self.reference, seed=self.evaluator.seed)
        return compute_metrics([self.metric], extractor, sides).metrics[self.name]

    def __call__(self, settings: Mapping[str, Any], seed: int) -> Score:
        """See `Judge`."""
        begun = time.monotonic()
        images = PipelineImages(self.pipe, self.count, seed=seed, name=self.source, **settings)
        stats = measure(
            self.evaluator.extractor,
            images,
            Wanted(sample=self.count),
            seed=self.evaluator.seed,
            batch_size=self.evaluator.batch_size,
            device=self.evaluator.where,
            precision=self.evaluator.precision,
            check_size=partial(check_sizes, reference=self.reference.origin.size),
            progress=False,
        )
        assert stats.features is not None
        groups = np.arange(self.count) % GROUPS
        without = [self._figure(stats.features[groups != group]) for group in range(GROUPS)]
        return Score(self._figure(stats.features), without, time.monotonic() - begun)
