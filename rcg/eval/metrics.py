"""The metrics: what each is called, what it needs, and computing those that can be had from measured image sets.

The computing is in `frechet`, `kernels`, `neighbors`, `sliced`, `likelihood` and `inception_score`; where torch-fidelity has a
metric, it is torch-fidelity's value. What this file adds: names that say which features were used (only the whole Inception
earns the name FID), sample counts and settings beside each figure, and a sentence instead of a crash where a metric
cannot be had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rcg.core.errors import UserError
from rcg.eval.copying import cell_count, cells_of, copying_notes, data_copying, near_copies
from rcg.eval.frechet import frechet_distance_from_stats, frechet_infinity
from rcg.eval.inception_score import SPLITS
from rcg.eval.kernels import Found, clip_mmd, kernel_inception_distance, vendi_score
from rcg.eval.likelihood import feature_likelihood_divergence
from rcg.eval.measure import Wanted
from rcg.eval.nearest import Neighbors
from rcg.eval.neighbors import density_coverage, precision_recall
from rcg.eval.references import ImageStats
from rcg.eval.sliced import monge_inception_distance
from rcg.eval.traps import count_notes

FEATURE_SAMPLE = 10_000
"""Images of a set whose features are kept, by default: for the metrics that look at single images."""
Need = Literal[
    "logits", "spatial", "clip", "reference", "features", "reference features", "train features", "train", "held-out"
]


@dataclass(frozen=True)
class Sides:
    """The measured sets that a metric looks at.

    Attributes:
        generated: to be judged.
        reference: to be judged against.
        held_out: real images that the model was not trained on.
        seed: of whatever is drawn.
        train: what the model was trained on; for `copies` and `ct` with the neighbours of the generated images' features and,
            after them, of the held-out ones' (`Wanted.near`).
    """

    generated: ImageStats
    reference: ImageStats | None = None
    held_out: ImageStats | None = None
    seed: int = 0
    train: ImageStats | None = None

    def nearest(self) -> tuple[Neighbors, Neighbors]:
        """The training images that are nearest to the generated and to the held-out images."""
        assert self.train is not None
        assert self.train.neighbors is not None
        return self.train.neighbors.split(len(_features(self.generated)))


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        needs: what must be there.
        compute: figures by plain name, and how they were computed.
    """

    needs: tuple[Need, ...]
    compute: Callable[[Sides], Found]


def _features(stats: ImageStats | None) -> np.ndarray:
    assert stats is not None
    assert stats.features is not None
    return stats.features


def _fid(sides: Sides) -> Found:
    generated, reference = sides.generated, sides.reference
    assert reference is not None
    value = frechet_distance_from_stats(generated.mu, generated.sigma, reference.mu, reference.sigma)
    return {"fid": value}, {}


def _sfid(sides: Sides) -> Found:
    generated, reference = sides.generated, sides.reference
    assert reference is not None
    if generated.spatial is None or reference.spatial is None:
        raise UserError("this statistics file holds no mu_s and sigma_s; give the reference images.")
    return {"sfid": frechet_distance_from_stats(*generated.spatial, *reference.spatial)}, {}


def _fid_infinity(sides: Sides) -> Found:
    assert sides.reference is not None
    features = _features(sides.generated)
    value, settings = frechet_infinity(features, sides.reference.mu, sides.reference.sigma, sides.seed)
    return {"fid_infinity": value}, settings


def _isc(sides: Sides) -> Found:
    generated = sides.generated
    if generated.inception_score is None:
        raise UserError("the Inception Score draws its splits beforehand; give the number of images in the stream.")
    mean, deviation = generated.inception_score
    splits = SPLITS if (generated.n or 0) >= 10 * SPLITS else 1
    return {"isc": mean, "isc_std": deviation}, {"splits": splits}


def _vendi(sides: Sides) -> Found:
    reference = None if sides.reference is None or sides.reference.features is None else sides.reference.features
    settings = {} if reference is None else {"of_reference": vendi_score(reference)}
    return {"vendi": vendi_score(_features(sides.generated))}, settings


def _between(function: Callable[..., Found], seeded: bool = False) -> Callable[[Sides], Found]:
    """A metric of two sets of features."""

    def compute(sides: Sides) -> Found:
        given = _features(sides.generated), _features(sides.reference)
        return function(*given, sides.seed) if seeded else function(*given)

    return compute


def _fld(sides: Sides) -> Found:
    generated, train, test = (_features(side) for side in (sides.generated, sides.train, sides.held_out))
    return feature_likelihood_divergence(generated, train, test, sides.seed)


def _copies(sides: Sides) -> Found:
    assert sides.train is not None
    ours, theirs = sides.nearest()
    found, settings = near_copies(ours.distances[:, 0], theirs.distances[:, 0])
    return found, settings | {"train": sides.train.n}


def _ct(sides: Sides) -> Found:
    assert sides.train is not None
    train, (ours, theirs) = _features(sides.train), sides.nearest()
    cells = cell_count(len(theirs), len(train))
    cell = cells_of(train, [_features(sides.generated), _features(sides.held_out)], cells, sides.seed)
    found, settings = data_copying(ours.distances[:, 0], theirs.distances[:, 0], *cell)
    return found, settings | {"train": sides.train.n, "held_out": len(theirs)}


_BOTH: tuple[Need, ...] = ("reference", "features", "reference features")
METRICS: dict[str, Metric] = {
    "fid": Metric(("reference",), _fid),
    "sfid": Metric(("spatial", "reference"), _sfid),
    "fid_infinity": Metric(("reference", "features"), _fid_infinity),
    "isc": Metric(("logits",), _isc),
    "kid": Metric(_BOTH, _between(kernel_inception_distance, seeded=True)),
    "prc": Metric(_BOTH, _between(precision_recall)),
    "dc": Metric(_BOTH, _between(density_coverage)),
    "mind": Metric(_BOTH, _between(monge_inception_distance, seeded=True)),
    "cmmd": Metric(("clip", *_BOTH), _between(clip_mmd)),
    "vendi": Metric(("features",), _vendi),
    "fld": Metric(("features", "train features", "held-out"), _fld),
    "copies": Metric(("features", "train", "held-out"), _copies),
    "ct": Metric(("features", "train features", "train", "held-out"), _ct),
}
DEFAULT_METRICS = ("fid", "isc", "kid", "prc", "dc")


def metric_name(metric: str, extractor: str) -> str:
    """What a figure is called: `fid`, `isc`, `kid`, `precision`, … only for the whole Inception (2048 features).

    With `inception-768` the names end in `-768` (`fid-768`); with any other extractor in its name, and the Fréchet
    distance is then `frechet-<extractor>`. Names of their own have the Fréchet distances of `dinov2` (`fdd`) and of
    representations without images (`rep_fd`), and CMMD; sFID's features are equal with both Inceptions.
    """
    if extractor == "inception" or metric in ("sfid", "cmmd"):
        return metric
    if extractor == "inception-768":
        return f"{metric}-768"
    own = {"dinov2": "fdd", "representation": "rep_fd"}.get(extractor)
    if metric.startswith("fid"):
        rest = metric.removeprefix("fid")
        return f"{own}{rest}" if own else f"frechet{rest}-{extractor}"
    return f"{metric}-{extractor}"


@dataclass
class Scores:
    """What was computed.

    Attributes:
        metrics: figure by name (`metric_name`), all finite.
        settings: how, by metric: sample counts, subset sizes, splits, neighbours.
        unavailable: one sentence by metric that could not be computed.
        notes: what a reader of the figures should know.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def parse_metrics(words: Sequence[str]) -> list[str]:
    """`["fid,isc", "kid"]` → `["fid", "isc", "kid"]`: commas or spaces, any case, without repeats.

    Raises:
        UserError: a name that is no metric, or none at all.
    """
    names = list(dict.fromkeys(n.strip().lower() for word in words for n in word.split(",") if n.strip()))
    unknown = [n for n in names if n not in METRICS]
    if unknown:
        raise UserError(f"--metrics: there is no metric {unknown[0]!r}; choose among {', '.join(METRICS)}.")
    if not names:
        raise UserError(f"--metrics is empty; choose among {', '.join(METRICS)}.")
    return names


def needs(metrics: Sequence[str]) -> set[Need]:
    """What any of `metrics` needs."""
    return {need for metric in metrics for need in METRICS[metric].needs}


def wanted_of(metrics: Sequence[str], sample: int) -> Wanted:
    """What is to be kept of a generated set for `metrics`, at most `sample` features."""
    found = needs(metrics)
    return Wanted(sample if "features" in found else 0, "spatial" in found, "logits" in found)


REASONS: dict[Need, str] = {
    "logits": "the Inception Score needs the logits of the whole Inception; {extractor} has none.",
    "spatial": "sFID needs the spatial features of an Inception; {extractor} has none.",
    "clip": "CMMD is a distance of CLIP embeddings; use --extractor clip.",
    "reference": "it compares with a reference; give --reference.",
    "features": "it looks at the features of single images; --feature-sample must be above 0.",
    "reference features": "it needs the features of the reference, and this statistics file holds only their mu and sigma.",
    "train features": "it needs the features of training images; give --train-data (or the training images as --reference).",
    "train": "it looks for the nearest of all training images; give their folder as --train-data (or as --reference).",
    "held-out": "it needs images that the model was not trained on, or statistics with their features; give --held-out, and the "
    "training images as --train-data.",
}


def why_unavailable(metric: str, extractor: str, missing: set[Need]) -> str | None:
    """Why `metric` cannot be had, in one sentence, or None if it can: to be asked before any features are extracted.

    Args:
        metric: one of `METRICS`.
        extractor: the extractor's name.
        missing: what is not there.
    """
    return next((REASONS[need].format(extractor=extractor) for need in METRICS[metric].needs if need in missing), None)


def compute_metrics(metrics: Sequence[str], extractor: str, sides: Sides) -> Scores:
    """Compute `metrics` (of `METRICS`) from what was measured.

    Args:
        metrics: those that nothing is missing for (`why_unavailable`).
        extractor: name of the extractor that measured all sides.
        sides: the sets.

    Returns:
        Scores; a metric that cannot be computed stands under `unavailable`.

    Raises:
        UserError: not one of them can be computed.
    """
    scores = Scores()
    for metric in metrics:
        name = metric_name(metric, extractor)
        try:
            found, settings = METRICS[metric].compute(sides)
        except UserError as e:
            scores.unavailable[name] = str(e)
            continue
        if not all(np.isfinite(value) for value in found.values()):
            scores.unavailable[name] = "it is not finite for these images."
            continue
        scores.metrics |= {metric_name(key, extractor): value for key, value in found.items()}
        scores.settings[name] = _counts(metric, sides) | settings
    if not scores.metrics:
        raise UserError(none_possible(scores.unavailable))
    if (figure := metric_name("fid", extractor)) in scores.metrics and sides.reference is not None:
        scores.notes += count_notes(sides.generated, sides.reference, figure, "fid_infinity" in metrics)
    scores.notes += copying_notes(scores.settings, scores.metrics)
    return scores


def _counts(metric: str, sides: Sides) -> dict[str, Any]:
    """How many images of each side a metric looked at."""
    single, pair = "features" in METRICS[metric].needs, "reference" in METRICS[metric].needs
    reference_features = "reference features" in METRICS[metric].needs

    def number(stats: ImageStats, sampled: bool) -> int | None:
        return len(stats.features) if sampled and stats.features is not None else stats.n

    found: dict[str, Any] = {"generated": number(sides.generated, single)}
    if pair and sides.reference is not None:
        found["reference"] = number(sides.reference, reference_features)
    return found


def none_possible(unavailable: dict[str, str]) -> str:
    """The sentence for when no metric is left."""
    return "None of the metrics can be computed. " + " ".join(f"{n}: {reason}" for n, reason in unavailable.items())
