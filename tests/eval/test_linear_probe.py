"""Linear and few-shot probes: against scikit-learn, against chance, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rcg.core.errors import UserError
from rcg.eval.linear_probe import few_shot_accuracy, linear_probe


def clouds(count: int, seed: int, spread: float = 1.0, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(0).normal(size=(classes, 12))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return (centres[labels] + spread * rng.normal(size=(count, 12))).astype(np.float32), labels


def test_it_finds_what_logistic_regression_finds() -> None:
    x, y = clouds(1200, 1)
    x_test, y_test = clouds(600, 2)
    expected = LogisticRegression(max_iter=1000).fit(x, y).score(x_test, y_test)
    found = linear_probe(x, y, x_test, y_test, epochs=30, batch_size=128)
    assert 0.6 < expected < 0.98
    assert found.accuracy == pytest.approx(expected, abs=0.02)
    assert found.accuracy == found.by_rate[found.learning_rate]
    assert len(found.by_rate) == 10
    again = linear_probe(x, y, x_test, y_test, epochs=30, batch_size=128)
    assert again == found
    alone = linear_probe(x, y, x_test, y_test, epochs=30, batch_size=128, learning_rates=[0.1])
    assert alone.by_rate[0.1] == pytest.approx(found.by_rate[0.1], abs=0.005)


def test_the_gradient_is_that_of_cross_entropy() -> None:
    """One step at one rate, against autograd."""
    from rcg.eval.linear_probe import _train

    x, y = (torch.as_tensor(v) for v in clouds(64, 3))
    weights, biases = _train(x, y, 6, [0.7], 1, 64, 0)
    w, b = torch.zeros(12, 6, requires_grad=True), torch.zeros(6, requires_grad=True)
    torch.nn.functional.cross_entropy(x @ w + b, y).backward()
    assert w.grad is not None
    assert b.grad is not None
    lr = 0.7 * 64 / 256
    torch.testing.assert_close(weights[0], -lr * w.grad)
    torch.testing.assert_close(biases[0], -lr * b.grad)


def test_normalising_helps_features_of_uneven_scale() -> None:
    x, y = clouds(600, 1)
    x_test, y_test = clouds(300, 2)
    scale = np.logspace(-4, 0, 12, dtype=np.float32)
    plain, normal = (
        linear_probe(x * scale, y, x_test * scale, y_test, epochs=10, batch_size=128, batch_norm=on).accuracy
        for on in (False, True)
    )
    assert normal > plain + 0.1


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_the_scale_of_features_does_not_matter(scale: float) -> None:
    (x, y), (x_test, y_test) = clouds(600, 1), clouds(300, 2)
    x, x_test = (np.concatenate([part, np.ones_like(part[:, :1])], axis=1) for part in (x, x_test))  # and a constant
    given = {"epochs": 10, "batch_size": 128}
    one, other = (
        linear_probe(x * s, y, x_test * s, y_test, **given).accuracy for s in (np.float32(1), np.float32(scale))
    )
    assert other == pytest.approx(one, abs=0.02)


def test_few_shot() -> None:
    x, y = clouds(600, 1, spread=0.1)
    assert few_shot_accuracy(x, y, episodes=20)[0] > 0.99
    noise = np.random.default_rng(5).normal(size=x.shape)
    mean, interval = few_shot_accuracy(noise, y, episodes=100)
    assert abs(mean - 0.2) < 3 * interval
    assert few_shot_accuracy(x, y, episodes=5) == few_shot_accuracy(x, y, episodes=5)


def test_what_they_refuse() -> None:
    x, y = clouds(60, 1)
    with pytest.raises(UserError, match="do not go with"):
        linear_probe(x, y[:-1], x, y)
    with pytest.raises(UserError, match="not finite"):
        linear_probe(x * np.nan, y, x, y)
    with pytest.raises(UserError, match="labels below 0"):
        linear_probe(x, y - 1, x, y)
    with pytest.raises(UserError, match="learning rates above 0"):
        linear_probe(x, y, x, y, learning_rates=[])
    with pytest.raises(UserError, match="need 5 classes with 20 samples"):
        few_shot_accuracy(x, y)
    with pytest.raises(UserError, match="at least 2 classes"):
        few_shot_accuracy(x, y, ways=1)
