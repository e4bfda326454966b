"""The linear probe: how well a logistic regression on frozen features tells classes apart."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from rcg.core.errors import UserError

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
VALIDATION = 0.2
"""Share of the training part by which the penalty is chosen."""
LEAST = 10
STEPS = 200


@dataclass(frozen=True)
class Probe:
    """What a linear probe found.

    Attributes:
        accuracy: on the test part, in [0, 1].
        penalty: the chosen one.
        validation: accuracy on the validation part by penalty.
    """

    accuracy: float
    penalty: float
    validation: dict[float, float]


def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    penalties: tuple[float, ...] = PENALTIES,
    seed: int = 0,
) -> Probe:
    """Multinomial logistic regression (scikit-learn's) on features scaled by the training part's mean and deviation.

    Each penalty λ (the loss is the mean cross-entropy plus λ/2 · |W|²) is tried on a fifth of the training part that the
    others are not fitted to; the best one, or of equals the strongest, is fitted anew to the whole of it. The test part decides
    nothing.

    Args:
        train_features: [N, D].
        train_labels: integers [N].
        test_features: [M, D].
        test_labels: integers [M].
        penalties: λ to try.
        seed: of the validation part.

    Raises:
        UserError: fewer than 10 training samples or 2 classes, no test sample, or sizes that do not fit.
    """
    if train_features.shape[1:] != test_features.shape[1:] or (len(train_labels), len(test_labels)) != (
        len(train_features),
        len(test_features),
    ):
        raise UserError("the linear probe needs features [N, D] with N labels and [M, D] with M labels.")
    if len(train_features) < LEAST or not len(test_features) or len(np.unique(train_labels)) < 2:
        raise UserError(f"the linear probe needs at least {LEAST} training samples of 2 classes, and a test sample.")
    mean, deviation = train_features.mean(axis=0), train_features.std(axis=0)
    deviation = np.where(deviation > 1e-12, deviation, 1.0)
    train, test = ((x.astype(np.float64) - mean) / deviation for x in (train_features, test_features))
    order = np.random.default_rng(seed).permutation(len(train))
    held = max(1, int(VALIDATION * len(train)))
    checked, fitted = order[:held], order[held:]
    found: dict[float, float] = {}
    if len(np.unique(train_labels[fitted])) > 1:
        for penalty in penalties:
            model = _fit(train[fitted], train_labels[fitted], penalty)
            found[penalty] = float((model.predict(train[checked]) == train_labels[checked]).mean())
    best = max(penalties, key=lambda penalty: (found.get(penalty, 0.0), penalty))
    model = _fit(train, train_labels, best)
    return Probe(float((model.predict(test) == test_labels).mean()), best, found)


def _fit(features: np.ndarray, labels: np.ndarray, penalty: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / (penalty * len(features)), max_iter=STEPS, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at weak penalties the last digits need no more steps
        return model.fit(features, labels)
