"""Metrics by nearest neighbours: precision and recall, density and coverage."""

from __future__ import annotations

import numpy as np
import torch
from torch_fidelity.metric_prc import (
    KEY_METRIC_F_SCORE,
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

from rcg.core.errors import UserError
from rcg.eval.kernels import Found

PRC_NEIGHBORS = 3
DC_NEIGHBORS = 5
CHUNK = 2000  # rows of a distance matrix held at once


def precision_recall(generated: np.ndarray, reference: np.ndarray) -> Found:
    """Precision, recall and F-score by k-NN balls, k = 3 (Kynkäänniemi et al. 2019), each in [0, 1]; torch-fidelity's.

    Precision is the fraction of `generated` [N, D] inside a ball of `reference` [M, D]; recall the other way round.

    Raises:
        UserError: no more than 3 images on a side.
    """
    if min(len(generated), len(reference)) <= PRC_NEIGHBORS:
        raise UserError(f"precision and recall need more than {PRC_NEIGHBORS} images on each side.")
    middle = reference.mean(axis=0, dtype=np.float64).astype(
        reference.dtype
    )  # far from 0, distances in fp32 lose their digits
    found = prc_features_to_metric(
        torch.from_numpy(generated - middle),
        torch.from_numpy(reference - middle),
        prc_neighborhood=PRC_NEIGHBORS,
        prc_batch_size=CHUNK,
        save_cpu_ram=True,
        verbose=False,
    )
    values = {"precision": KEY_METRIC_PRECISION, "recall": KEY_METRIC_RECALL, "f_score": KEY_METRIC_F_SCORE}
    return {name: found[key] for name, key in values.items()}, {"neighbors": PRC_NEIGHBORS}


def density_coverage(generated: np.ndarray, reference: np.ndarray) -> Found:
    """Density and coverage by k-NN balls around the reference, k = 5 (Naeem et al. 2020, arXiv 2002.09797, eq. 3 and 4).

    Density: in how many balls of `reference` [M, D] an image of `generated` [N, D] lies on average, divided by k; from 0
    up, about 1 for equal sets. Coverage, in [0, 1]: the fraction of the balls that hold a generated image. An outlier
    among the reference, whose ball is large, moves them less than it moves precision and recall.

    Raises:
        UserError: no more than 5 images in the reference, or none generated.
    """
    if len(reference) <= DC_NEIGHBORS or not len(generated):
        raise UserError(f"density and coverage need more than {DC_NEIGHBORS} reference images.")
    real, fake = torch.from_numpy(reference).double(), torch.from_numpy(generated).double()
    inside, covered = 0, 0
    for chunk in torch.arange(len(real)).split(CHUNK):
        own = torch.cdist(real[chunk], real)
        own[torch.arange(len(chunk)), chunk] = torch.inf
        hits = torch.cdist(real[chunk], fake) < own.kthvalue(DC_NEIGHBORS, dim=1, keepdim=True).values
        inside += int(hits.sum())
        covered += int(hits.any(dim=1).sum())
    values = {"density": inside / (DC_NEIGHBORS * len(fake)), "coverage": covered / len(real)}
    return values, {"neighbors": DC_NEIGHBORS}
