"""The metrics, from features that were extracted once: Fréchet distance, Inception Score, KID, precision, recall, density, …

All but density and coverage are torch-fidelity's functions. What this file adds: names that say which features were used (only the whole Inception
earns the name FID), sample counts and settings beside each figure, and a sentence instead of a crash where a metric
cannot be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import (
    KEY_METRIC_F_SCORE,
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

from rcg.core.errors import UserError
from rcg.eval.extractors import Features
from rcg.eval.references import ReferenceStats

METRICS = ("fid", "isc", "kid", "prc", "dc")
KID_SUBSET_SIZE = 1000
KID_SUBSETS = 100
KID_LEAST = 50  # samples in a subset below which KID's variance says nothing
ISC_SPLITS = 10
PRC_NEIGHBORS = 3
PRC_CHUNK = 2000  # rows of a distance matrix held at once
DC_NEIGHBORS = 5


def metric_name(metric: str, extractor: str) -> str:
    """What a figure is called: `fid`, `isc`, `kid`, `precision`, … only for the whole Inception (2048 features).

    With `inception-768` the names end in `-768` (`fid-768`); with any other extractor in its name, and the Fréchet
    distance is then `frechet-<extractor>`.
    """
    if extractor == "inception":
        return metric
    if extractor == "inception-768":
        return f"{metric}-768"
    return f"{'frechet' if metric == 'fid' else metric}-{extractor}"


class Unavailable(UserError):
    """A metric that cannot be computed from what there is; the others may be."""


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


def why_unavailable(
    metric: str, extractor: str, has_logits: bool, has_reference: bool, has_reference_features: bool
) -> str | None:
    """Why `metric` cannot be had, in one sentence, or None if it can: to be asked before any features are extracted.

    Args:
        metric: one of `METRICS`.
        extractor: the extractor's name.
        has_logits: whether it gives logits.
        has_reference: whether there is a reference of any kind.
        has_reference_features: whether the reference's features are at hand, and not only mu and sigma.
    """
    if metric == "isc":
        return (
            None
            if has_logits
            else f"the Inception Score needs the logits of the whole Inception; {extractor} has none."
        )
    if not has_reference:
        return "it compares with a reference; give --reference."
    if metric in ("kid", "prc", "dc") and not has_reference_features:
        return "it needs the features of the reference, and this statistics file holds only their mu and sigma."
    return None


def frechet(generated: ReferenceStats, reference: ReferenceStats) -> float:
    """||μ₁−μ₂||² + Tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) (Heusel et al. 2017, eq. 6), never below 0 by more than rounding."""
    a, b = ({"mu": s.mu, "sigma": s.sigma} for s in (generated, reference))
    return max(0.0, float(fid_statistics_to_metric(a, b, verbose=False)[KEY_METRIC_FID]))


def inception_score(logits: np.ndarray, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Mean and standard deviation over splits of exp E[KL(p(y|x) || p(y))] (Salimans et al. 2016).

    Args:
        logits: [N, C]; the order is shuffled by `seed` before splitting.
    """
    splits = ISC_SPLITS if len(logits) >= 10 * ISC_SPLITS else 1
    if len(logits) < 2:
        raise Unavailable("the Inception Score needs at least 2 generated images.")
    found = isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=True, rng_seed=seed)
    values = {"isc": found[KEY_METRIC_ISC_MEAN], "isc_std": found[KEY_METRIC_ISC_STD]}
    return values, {"generated": len(logits), "splits": splits}


def kernel_inception_distance(
    generated: np.ndarray, reference: np.ndarray, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Unbiased squared MMD with the cubic kernel (x·y/D + 1)³, mean and spread over subsets (Bińkowski et al. 2018).

    Args:
        generated, reference: features [N, D], [M, D]. Subsets hold 1000 of each, or all of the smaller set if it is less.
    """
    size = min(KID_SUBSET_SIZE, len(generated), len(reference))
    if size < KID_LEAST:
        raise Unavailable(f"KID needs at least {KID_LEAST} images on each side; there are only {size} on one.")
    found = kid_features_to_metric(
        torch.from_numpy(generated).double(),  # small features make a kernel near 1, where fp32 loses digits
        torch.from_numpy(reference).double(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    values = {"kid": found[KEY_METRIC_KID_MEAN], "kid_std": found[KEY_METRIC_KID_STD]}
    return values, {"subsets": KID_SUBSETS, "subset_size": size}


def precision_recall(generated: np.ndarray, reference: np.ndarray) -> tuple[dict[str, float], dict[str, Any]]:
    """Precision, recall and F-score by k-NN balls, k = 3 (Kynkäänniemi et al. 2019), each in [0, 1].

    Precision is the fraction of `generated` [N, D] inside a ball of `reference` [M, D]; recall the other way round.
    """
    if min(len(generated), len(reference)) <= PRC_NEIGHBORS:
        raise Unavailable(f"precision and recall need more than {PRC_NEIGHBORS} images on each side.")
    found = prc_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(reference),
        prc_neighborhood=PRC_NEIGHBORS,
        prc_batch_size=PRC_CHUNK,
        save_cpu_ram=True,
        verbose=False,
    )
    values = {"precision": KEY_METRIC_PRECISION, "recall": KEY_METRIC_RECALL, "f_score": KEY_METRIC_F_SCORE}
    return {name: found[key] for name, key in values.items()}, {"neighbors": PRC_NEIGHBORS}


def density_coverage(generated: np.ndarray, reference: np.ndarray) -> tuple[dict[str, float], dict[str, Any]]:
    """Density and coverage by k-NN balls around the reference, k = 5 (Naeem et al. 2020, arXiv 2002.09797, eq. 3 and 4).

    Density: in how many balls of `reference` [M, D] an image of `generated` [N, D] lies on average, divided by k; from 0
    up, about 1 for equal sets. Coverage, in [0, 1]: the fraction of the balls that hold a generated image. An outlier
    among the reference, whose ball is large, moves them less than it moves precision and recall.
    """
    if len(reference) <= DC_NEIGHBORS or not len(generated):
        raise Unavailable(f"density and coverage need more than {DC_NEIGHBORS} reference images.")
    real, fake = torch.from_numpy(reference).double(), torch.from_numpy(generated).double()
    inside, covered = 0, 0
    for chunk in torch.arange(len(real)).split(PRC_CHUNK):
        own = torch.cdist(real[chunk], real)
        own[torch.arange(len(chunk)), chunk] = torch.inf
        hits = torch.cdist(real[chunk], fake) < own.kthvalue(DC_NEIGHBORS, dim=1, keepdim=True).values
        inside += int(hits.sum())
        covered += int(hits.any(dim=1).sum())
    values = {"density": inside / (DC_NEIGHBORS * len(fake)), "coverage": covered / len(real)}
    return values, {"neighbors": DC_NEIGHBORS}


def compute_metrics(
    metrics: Sequence[str],
    extractor: str,
    generated: Features,
    reference: ReferenceStats | None,
    *,
    seed: int = 0,
) -> Scores:
    """Compute `metrics` (of `METRICS`) from features.

    Args:
        extractor: name of the extractor that made all the features.
        generated: of the images to judge.
        reference: of the images to judge against; KID, precision/recall and density/coverage need its `features`.
        seed: of KID's subsets and the Inception Score's shuffle.

    Returns:
        Scores; a metric that cannot be computed stands under `unavailable`.

    Raises:
        UserError: not one of them can be computed.
    """
    scores = Scores()
    has_logits, has_features = generated.logits is not None, reference is not None and reference.features is not None
    for metric in metrics:
        name = metric_name(metric, extractor)
        try:
            if reason := why_unavailable(metric, extractor, has_logits, reference is not None, has_features):
                raise Unavailable(reason)
            found, settings = _compute(metric, generated, reference, seed)
        except Unavailable as e:
            scores.unavailable[name] = str(e)
            continue
        if not all(np.isfinite(value) for value in found.values()):
            scores.unavailable[name] = "it is not finite for these images."
            continue
        scores.metrics |= {metric_name(key, extractor): value for key, value in found.items()}
        scores.settings[name] = settings
    if not scores.metrics:
        raise UserError(none_possible(scores.unavailable))
    dim = generated.features.shape[1]
    if metric_name("fid", extractor) in scores.metrics and len(generated) <= dim:
        scores.notes.append(
            f"There are no more generated images ({len(generated)}) than features ({dim}): the Fréchet distance is "
            "biased upwards; compare it only with figures of equal counts."
        )
    return scores


def none_possible(unavailable: dict[str, str]) -> str:
    """The sentence for when no metric is left."""
    return "None of the metrics can be computed. " + " ".join(f"{n}: {reason}" for n, reason in unavailable.items())


def _compute(
    metric: str, generated: Features, reference: ReferenceStats | None, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures by plain name, and how they were computed."""
    if metric == "isc":
        assert generated.logits is not None
        return inception_score(generated.logits, seed)
    assert reference is not None
    counts = {"generated": len(generated), "reference": reference.n}
    if metric == "fid":
        if len(generated) < 2:
            raise Unavailable("a Fréchet distance needs at least 2 generated images.")
        return {"fid": frechet(ReferenceStats.of(generated.features, ""), reference)}, counts
    assert reference.features is not None
    if metric == "kid":
        found, settings = kernel_inception_distance(generated.features, reference.features, seed)
    elif metric == "dc":
        found, settings = density_coverage(generated.features, reference.features)
    else:
        found, settings = precision_recall(generated.features, reference.features)
    return found, counts | settings
