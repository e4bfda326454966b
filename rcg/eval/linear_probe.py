"""Linear and few-shot probes on cached features: how much a representation knows about labels it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rcg.core.errors import UserError
from rcg.core.rng import derive_seed

LEARNING_RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.3, 0.5)
"""Tried at once; those of StableRep (arXiv 2306.00984, appendix) reach from the first to the last."""
Features = np.ndarray | Tensor


@dataclass(frozen=True)
class Probe:
    """What linear probes found.

    Attributes:
        accuracy: share of test samples that are classified rightly, in [0, 1], at the chosen rate.
        learning_rate: the one that was chosen, on samples held out from training.
        by_rate: accuracy on the test samples at each rate.
    """

    accuracy: float
    learning_rate: float
    by_rate: dict[float, float]


def linear_probe(
    train_features: Features,
    train_labels: Features,
    test_features: Features,
    test_labels: Features,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 90,
    batch_size: int = 1024,
    batch_norm: bool = True,
    held_out: float = 0.1,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Probe:
    """Accuracy of a linear classifier on frozen features, one for each learning rate, all trained together.

    SGD with momentum 0.9 and half a cosine, no weight decay, as linear probes of self-supervised encoders are trained
    (MAE, arXiv 2111.06377, appendix A.1; rates are for 256 samples: lr = rate · batch_size / 256). The rate is chosen on
    samples held out from training, never on the test samples.

    Args:
        train_features, test_features: [N, D] and [M, D], any scale.
        train_labels, test_labels: integers [N] and [M], from 0.
        learning_rates: tried at once.
        epochs: passes over the training samples.
        batch_size: samples in a step.
        batch_norm: normalise each feature by its mean and standard deviation over the training samples: what BatchNorm
            without parameters comes to when features are frozen. Otherwise features are as they are.
        held_out: share of the training samples by which the rate is chosen.
        seed: of order and split.
        device: where to train.

    Raises:
        UserError: features and labels do not go together, or settings out of range.
    """
    x, y, x_test, y_test = _checked(train_features, train_labels, test_features, test_labels, device)
    if not learning_rates or min(learning_rates) <= 0 or epochs < 1 or batch_size < 1 or not 0 < held_out < 1:
        raise UserError(
            "a linear probe needs learning rates above 0, an epoch and a batch of 1 or more, and a held-out share."
        )
    if len(x) < 4:
        raise UserError(f"a linear probe needs at least 4 training samples, not {len(x)}.")
    if batch_norm:
        mean, std = x.mean(0), x.std(0, unbiased=False)
        least = (1e-6 * std.mean()).clamp_min(1e-30)
        x, x_test = ((part - mean) / (std + least) for part in (x, x_test))
    classes = int(max(y.max(), y_test.max())) + 1
    order = torch.from_numpy(np.random.default_rng(derive_seed(seed, 0)).permutation(len(x))).to(x.device)
    count = min(len(x) - 1, max(1, round(held_out * len(x))))
    held, kept = order[:count], order[count:]
    weights, biases = _train(x[kept], y[kept], classes, learning_rates, epochs, batch_size, seed)

    def accuracies(features: Tensor, truth: Tensor) -> Tensor:
        right = torch.zeros(len(learning_rates), device=features.device)
        for f, t in zip(features.split(4096), truth.split(4096), strict=True):
            right += (torch.einsum("nd,rdc->rnc", f, weights) + biases[:, None]).argmax(2).eq(t).float().sum(1)
        return right / len(features)

    best = int(accuracies(x[held], y[held]).argmax())
    found = accuracies(x_test, y_test).tolist()
    rates = [float(rate) for rate in learning_rates]
    return Probe(found[best], rates[best], dict(zip(rates, found, strict=True)))


def _train(
    x: Tensor, y: Tensor, classes: int, rates: Sequence[float], epochs: int, batch_size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Weights [rates, D, classes] and biases [rates, classes]. The gradient is written out: all rates in one product."""
    weights = torch.zeros(len(rates), x.shape[1], classes, device=x.device)
    biases = torch.zeros(len(rates), classes, device=x.device)
    speeds = [torch.zeros_like(weights), torch.zeros_like(biases)]
    peak = torch.tensor(rates, device=x.device) * min(batch_size, len(x)) / 256
    per_epoch = -(-len(x) // batch_size)
    for epoch in range(epochs):
        order = np.random.default_rng(derive_seed(seed, 1, epoch)).permutation(len(x))
        for i, rows in enumerate(torch.from_numpy(order).to(x.device).split(batch_size)):
            f, target = x[rows], y[rows]
            slope = (torch.einsum("nd,rdc->rnc", f, weights) + biases[:, None]).softmax(2)
            slope[:, torch.arange(len(rows), device=x.device), target] -= 1
            slope /= len(rows)
            gradients = (torch.einsum("nd,rnc->rdc", f, slope), slope.sum(1))
            lr = peak * (1 + math.cos(math.pi * (epoch * per_epoch + i) / (epochs * per_epoch))) / 2
            for value, speed, gradient in zip((weights, biases), speeds, gradients, strict=True):
                speed.mul_(0.9).add_(gradient)
                value.sub_(lr.view(-1, *[1] * (value.ndim - 1)) * speed)
    return weights, biases


def few_shot_accuracy(
    features: Features,
    labels: Features,
    *,
    ways: int = 5,
    shots: int = 5,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
) -> tuple[float, float]:
    """Few-shot classification by the nearest class mean (Snell et al. 2017), on normalised features.

    Each episode draws `ways` classes, `shots` labelled samples of each, and `queries` others to be classified.

    Args:
        features: [N, D], any scale.
        labels: integers [N], from 0.
        ways, shots, queries, episodes, seed: as above.

    Returns:
        mean accuracy in [0, 1] and the half width of its 95 % interval over episodes.

    Raises:
        UserError: too few classes with enough samples, or settings out of range.
    """
    x, y, _, _ = _checked(features, labels, features, labels, "cpu")
    if min(ways - 1, shots, queries, episodes) < 1:
        raise UserError("few-shot episodes need at least 2 classes, a shot, a query and an episode.")
    members = [m for c in range(int(y.max()) + 1) if len(m := (y == c).nonzero()[:, 0].numpy()) >= shots + queries]
    if len(members) < ways:
        raise UserError(
            f"few-shot episodes need {ways} classes with {shots + queries} samples each, but there are {len(members)}; "
            "give more data, or fewer ways, shots or queries."
        )
    x = F.normalize(x, dim=1)
    truth = torch.arange(ways).repeat_interleave(queries)
    rates: list[float] = []
    for episode in range(episodes):
        rng = np.random.default_rng(derive_seed(seed, episode))
        chosen = rng.choice(len(members), ways, replace=False)
        rows = np.stack([rng.choice(members[c], shots + queries, replace=False) for c in chosen])
        means = F.normalize(x[torch.from_numpy(rows[:, :shots])].mean(1), dim=1)
        guess = (x[torch.from_numpy(rows[:, shots:]).flatten()] @ means.T).argmax(1)
        rates.append(float((guess == truth).float().mean()))
    spread = float(np.std(rates, ddof=1)) if episodes > 1 else 0.0
    return float(np.mean(rates)), 1.96 * spread / math.sqrt(episodes)


def _checked(
    train: Features, train_labels: Features, test: Features, test_labels: Features, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, x_test = (torch.as_tensor(f).float().to(device) for f in (train, test))
    y, y_test = (torch.as_tensor(v).long().to(device) for v in (train_labels, test_labels))
    if x.ndim != 2 or x.shape[1:] != x_test.shape[1:] or len(x) != len(y) or len(x_test) != len(y_test):
        raise UserError(
            f"probe: features {list(x.shape)} and {list(x_test.shape)} do not go with {len(y)} and {len(y_test)} labels; "
            "give [N, D] with N labels and [M, D] with M labels."
        )
    if min(len(x), len(x_test)) == 0 or min(int(y.min()), int(y_test.min())) < 0:
        raise UserError("probe: there are no samples, or labels below 0; leave out samples without a label.")
    if not (x.isfinite().all() and x_test.isfinite().all()):
        raise UserError("probe: some features are not finite.")
    return x, y, x_test, y_test
