"""Scores of representations without any image: how near an RDM's samples come to the real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from rcg.core.errors import UserError
from rcg.eval.metrics import METRICS, Sides, compute_metrics, metric_name, none_possible, parse_metrics
from rcg.eval.references import ImageStats
from rcg.eval.reports import report

NAME = "representation"
POSSIBLE = tuple(
    name for name, metric in METRICS.items() if {"reference", "features", "reference features"} >= {*metric.needs}
)
NEEDS_IMAGES = f"it needs images or other sets of them, not representations alone; choose among {', '.join(POSSIBLE)}."


def split_real(real: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two random sets of real representations, of equal size: to compare with, and for the floor.

    Args:
        real: [M, D].
        most: rows in each at most; never more than half of all.
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(real))
    n = min(most, len(real) // 2)
    return real[order[:n]], real[order[n : 2 * n]]


def evaluate_representations(
    sampled: np.ndarray,
    real: np.ndarray,
    metrics: Sequence[str],
    *,
    seed: int = 0,
    sources: Mapping[str, str | None],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score sampled representations against real ones.

    As distances fall with more vectors, all sets are made equally large, and the report holds under `floor` what real
    representations reach against the same half of the real ones.

    Args:
        sampled: [N, D].
        real: [M, D]; half of them, at most N, are compared with, as many others are the floor.
        metrics: names in `rcg.eval.metrics.METRICS` (`fid` is then `rep_fd`).
        seed: of the halves and of whatever else is drawn.
        sources: what the two sides are.
        extra: further JSON-able entries of the report.

    Raises:
        UserError: vectors of different length, too few, or no metric that can be computed.
    """
    if sampled.shape[1:] != real.shape[1:]:
        raise UserError(
            f"The sampled representations have {sampled.shape[1]} numbers and the real ones {real.shape[1]}; give the "
            "cache of the encoder that the model was trained with."
        )
    reference, other = (ImageStats.of(x, NAME) for x in split_real(real, len(sampled), seed))
    assert reference.n is not None
    generated = ImageStats.of(sampled[: reference.n], NAME)
    names = parse_metrics(metrics)
    wanted = [m for m in names if m in POSSIBLE]
    unavailable = {metric_name(m, NAME): NEEDS_IMAGES for m in names if m not in POSSIBLE}
    if not wanted:
        raise UserError(none_possible(unavailable))
    scores = compute_metrics(wanted, NAME, Sides(generated, reference, seed=seed))
    scores.unavailable |= unavailable
    paired = [m for m in wanted if "reference" in METRICS[m].needs]
    floor: Mapping[str, float] = {}
    with suppress(UserError):  # fewer vectors than any of them needs
        floor = compute_metrics(paired, NAME, Sides(other, reference, seed=seed)).metrics
    return report(
        scores,
        extractor={"name": NAME},
        counts={"generated": generated.n, "reference": reference.n},
        sources=sources,
        extra={"floor": floor, **(extra or {})},
    )
