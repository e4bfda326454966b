"""FLD, the feature likelihood divergence (Jiralerspong et al., arXiv 2302.04440): does a model generalise?

A Gaussian is put around every generated image, each with the width that explains the training images best. The figure is
how badly this mixture explains images that nobody trained on, over what real images in the place of the generated ones
achieve. Copies of training images get needles for Gaussians, which explain no other image: copying makes the figure worse.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.eval.kernels import Found

STEPS = 50
LR = 0.5
ORIGIN = (1 - 0.1) ** 2  # the background component sees points drawn nearer to the centre
CHUNK = 500  # rows of a distance matrix in float64 at once
LEAST = 8


def _squares(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y).square()


def _log_densities(squares: Tensor, log_variances: Tensor, dim: int) -> Tensor:
    """log N(x; centre, variance·1) of each pair."""
    return -0.5 * squares * (-log_variances).exp() - 0.5 * dim * (log_variances + math.log(2 * math.pi))


def fit_widths(centres: Tensor, train: Tensor) -> Tensor:
    """Log variance of the Gaussian around each centre, fitted to the likelihood of `train` (the paper, §3.2).

    It starts from the nearest training point of each centre; full-batch Adam. While it is fitted, a background component
    around the mean bounds what a far point costs.

    Args:
        centres: [N, D], standardised.
        train: [M, D].
    """
    n, dim = centres.shape
    background = ORIGIN * (train - train.mean(dim=0)).square().sum(dim=1)
    squares = [_squares(part, centres).float() for part in train.split(CHUNK)]  # kept: the larger part of the memory
    nearest = torch.stack([part.min(dim=0).values for part in squares]).min(dim=0).values.double()
    widths = torch.cat([((nearest + 1e-3) / dim).log(), torch.zeros(1, dtype=torch.float64)])  # the last: background
    optimizer = torch.optim.Adam([widths], lr=LR)
    for _ in range(STEPS):
        widths.grad = torch.zeros_like(widths)
        for part, far in zip(squares, background.split(CHUNK), strict=True):
            distances = torch.cat([part.double(), far[:, None]], dim=1)
            logs = _log_densities(distances, widths, dim)
            logs[:, :n] -= math.log(n)
            share = logs.softmax(dim=1)
            slope = 0.5 * distances * (-widths).exp() - 0.5 * dim  # of log density by log variance
            widths.grad -= (share * slope).sum(dim=0) / (dim * len(train))
        optimizer.step()
        widths[:n].clamp_(-40, 20)
    return widths[:n]


def negative_log_likelihood(test: Tensor, centres: Tensor, widths: Tensor) -> float:
    """Of `test` [M, D] under the mixture, per image and dimension."""
    dim = centres.shape[1]
    logs = [
        (_log_densities(_squares(part, centres), widths, dim) - math.log(len(centres))).logsumexp(dim=1)
        for part in test.split(CHUNK)
    ]
    return -float(torch.cat(logs).mean()) / dim


def feature_likelihood_divergence(generated: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> Found:
    """FLD: 100 times the difference of two negative log likelihoods of `test`; 0 is perfect, copying makes it large.

    Args:
        generated, train, test: features [N, D], [M, D], [L, D]; `test` of images that the model was not trained on.
        seed: of the halves of `train` that give the baseline: one half in the place of the generated images.

    Raises:
        UserError: fewer than 8 images in a set.
    """
    if min(map(len, (generated, train, test))) < LEAST:
        raise UserError(f"FLD needs at least {LEAST} images in each of the three sets.")
    scale = test.std(axis=0, ddof=1, dtype=np.float64)
    mean, scale = test.mean(axis=0, dtype=np.float64), np.where(scale > 0, scale, 1.0)
    fake, seen, new = (torch.from_numpy((x - mean) / scale) for x in (generated, train, test))
    figure = negative_log_likelihood(new, fake, fit_widths(fake, seen))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(seen)))
    half = min(len(fake), len(seen) // 2)
    ideal, rest = seen[order[:half]], seen[order[half:]]
    baseline = negative_log_likelihood(new, ideal, fit_widths(ideal, rest))
    settings = {"train": len(train), "test": len(test), "baseline": baseline}
    return {"fld": 100 * (figure - baseline)}, settings
