"""Does a model repeat its training images? The share of near-copies, and the C_T test, from distances to the training set.

Both ask the same question of every sample, how far its nearest training image is, and let real images that the model never
saw say how far that should be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special, stats
from sklearn.cluster import KMeans

from rcg.core.errors import UserError
from rcg.eval.kernels import Found

QUANTILE = 0.01
"""A sample is a near-copy if it is nearer to a training image than all but this share of the held-out images."""
CELL = 100
"""Held-out images for each cell of C_T, about."""
MOST_CELLS = 50
LEAST_IN_CELL = 20
"""Images of either set in a cell that counts (the paper's τ is 20 images, too)."""
SURE = 1e-3
"""A p-value below which a note says so."""


def near_copies(generated: np.ndarray, held_out: np.ndarray, quantile: float = QUANTILE) -> Found:
    """The share of near-copies, in [0, 1], under the name `copies`.

    The threshold is the r-th smallest of the held-out distances, r = ⌊`quantile` (m + 1)⌋. Samples that are as new as the
    held-out images fall below it with an expected share of r / (m + 1), and their number is then beta-binomial, exactly and
    whatever the features are, which gives the `p_value` of so many or more.

    Args:
        generated: [n], distance of each sample to its nearest training image.
        held_out: [m], the same of real images that the model was not trained on.
        quantile: in (0, 1).

    Raises:
        UserError: too few held-out images for this quantile, or no sample.
    """
    m, n = len(held_out), len(generated)
    rank = int(quantile * (m + 1) * (1 + 1e-12))
    if rank < 1 or not n:
        least = int(np.ceil(1 / quantile)) - 1
        raise UserError(f"near-copies are judged by at least {least} held-out images; there are {m}.")
    threshold = float(np.sort(held_out)[rank - 1])
    number = int((generated < threshold).sum())
    logs = stats.betabinom.logpmf(np.arange(number, n + 1), n, rank, m - rank + 1)
    p_value = float(np.exp(special.logsumexp(logs)))  # 1 - cdf would lose its digits
    settings = {
        "threshold": threshold,
        "quantile": quantile,
        "expected": rank / (m + 1),
        "p_value": min(1.0, p_value),
        "held_out": m,
    }
    return {"copies": number / n}, settings


def rank_z(generated: np.ndarray, held_out: np.ndarray) -> float:
    """The Mann-Whitney statistic of two samples [n], [m] as a standard normal, with the correction for ties.

    Below 0 where the generated values are the smaller ones; 0 where all values are equal.
    """
    n, m = len(generated), len(held_out)
    ranks = stats.rankdata(np.concatenate([generated, held_out]))
    larger = ranks[:n].sum() - n * (n + 1) / 2  # pairs in which the generated one is larger, equal ones count one half
    _, ties = np.unique(ranks, return_counts=True)
    total = n + m
    variance = n * m / 12 * (total + 1 - (ties.astype(np.float64) ** 3 - ties).sum() / (total * (total - 1)))
    return float((larger - n * m / 2) / np.sqrt(variance)) if variance > 0 else 0.0


def cells_of(train: np.ndarray, others: Sequence[np.ndarray], count: int, seed: int) -> list[np.ndarray]:
    """The cell, 0 to `count` - 1, of every row of `others`: k-means on `train` [M, D].

    Args:
        train: training features, or a random sample of them.
        others: each [N, D].
        count: of cells; at most M.
        seed: of the k-means.
    """
    if count == 1:
        return [np.zeros(len(rows), dtype=np.int64) for rows in others]
    means = KMeans(count, n_init=1, random_state=seed % 2**32).fit(train.astype(np.float64))
    return [means.predict(rows.astype(np.float64)).astype(np.int64) for rows in others]


def cell_count(held_out: int, train: int) -> int:
    """Cells for so many held-out and training images: about 100 held-out images in each, at most 50."""
    return max(1, min(MOST_CELLS, held_out // CELL, train // CELL))


def data_copying(
    generated: np.ndarray, held_out: np.ndarray, generated_cells: np.ndarray, held_out_cells: np.ndarray
) -> Found:
    """C_T (Meehan, Chaudhuri and Dasgupta 2020, arXiv 2004.05675), under the name `ct`.

    In each cell of the space the distances of the samples to their nearest training images are compared with those of the
    held-out images by the Mann-Whitney statistic as a z-score; C_T is the mean of these, weighted by the held-out images in
    the cells. Far below 0 the model copies, far above 0 it is further from its training images than real images are. Cells
    with fewer than 20 images of a set are left out.

    It differs from the authors' program, with whose figures it does not compare: distances are to the nearest of all training
    images, not of those in the cell; ties are corrected for, and there is no correction for continuity.

    Args:
        generated, held_out: [n], [m], distances to the nearest training image.
        generated_cells, held_out_cells: int [n], [m].

    Returns:
        C_T; `deviation` is its standard deviation for a model that does not copy, `lowest` the lowest z-score of a cell.

    Raises:
        UserError: no cell has enough images.
    """
    scores, weights = [], []
    for cell in np.unique(held_out_cells):
        ours, theirs = generated[generated_cells == cell], held_out[held_out_cells == cell]
        if min(len(ours), len(theirs)) >= LEAST_IN_CELL:
            scores.append(rank_z(ours, theirs))
            weights.append(len(theirs))
    if not scores:
        raise UserError(f"C_T needs a cell with at least {LEAST_IN_CELL} generated and held-out images; give more.")
    share = np.array(weights) / sum(weights)
    settings = {
        "cells": len(scores),
        "cells_left_out": len(np.unique(held_out_cells)) - len(scores),
        "deviation": float(np.sqrt((share**2).sum())),
        "lowest": min(scores),
    }
    return {"ct": float(share @ np.array(scores))}, settings


def copying_notes(settings: Mapping[str, Mapping[str, Any]], figures: Mapping[str, float]) -> list[str]:
    """What a reader should know of the figures whose names begin with `copies` and `ct`, where they were computed."""
    notes = []
    for name, value in figures.items():
        told = settings.get(name, {})
        if name.partition("-")[0] == "copies" and told["p_value"] < SURE:
            rank = 100 * (1 - told["expected"])
            notes.append(
                f"{100 * value:.3g} % of the samples are nearer to a training image than {rank:.3g} % of the held-out images "
                f"are, of new images {100 * told['expected']:.2g} % would be (p = {told['p_value']:.1g}): the model copies, or "
                "its images are plainer than real ones; look at the nearest neighbours."
            )
        if name.partition("-")[0] == "ct" and value < -3 * told["deviation"]:
            notes.append(
                f"{name} is {value:.3g}, {-value / told['deviation']:.2g} deviations below 0: the samples lie nearer to the "
                "training images than held-out images do, as copies do, and plain, blurred or strongly guided images."
            )
    return notes
