"""k-NN accuracy against a loop over samples and against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from rcg.core.errors import UserError
from rcg.eval import probes
from rcg.eval.probes import knn_accuracy
from rcg.eval.probing import CAPTIONS, Language, zero_shot_accuracy

G = np.random.default_rng(0)
CENTRES = G.normal(size=(4, 8))
Y, Y_TEST = G.integers(0, 4, 120), G.integers(0, 4, 70)
X = (CENTRES[Y] + 1.6 * G.normal(size=(120, 8))).astype(np.float32)
X_TEST = (CENTRES[Y_TEST] + 1.6 * G.normal(size=(70, 8))).astype(np.float32)


def naive(k: int, temperature: float) -> float:
    correct = 0
    for x, y in zip(X_TEST.astype(float), Y_TEST, strict=True):
        cosine = [float(x @ t) / np.linalg.norm(x) / np.linalg.norm(t) for t in X.astype(float)]
        votes = dict.fromkeys(range(4), 0.0)
        for i in sorted(range(len(X)), key=lambda i: -cosine[i])[:k]:
            votes[int(Y[i])] += math.exp(cosine[i] / temperature)
        correct += max(votes, key=lambda c: votes[c]) == y
    return correct / len(X_TEST)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 0.5), (200, 0.07)])
def test_equals_the_naive_loop(k: int, temperature: float) -> None:
    found = knn_accuracy(X, Y, X_TEST, Y_TEST, k=k, temperature=temperature)
    assert found == pytest.approx(naive(k, temperature))
    assert 0.4 < found < 0.95  # neither chance nor trivial


def test_equals_scikit_learn_for_near_equal_votes() -> None:
    model = KNeighborsClassifier(n_neighbors=1, metric="cosine").fit(X, Y)
    assert knn_accuracy(X, Y, X_TEST, Y_TEST, k=1) == pytest.approx(model.score(X_TEST, Y_TEST))


def test_chunks_scale_and_type_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = knn_accuracy(X, Y, X_TEST, Y_TEST)
    monkeypatch.setattr(probes, "CHUNK", 7)
    assert knn_accuracy(torch.from_numpy(X) * 100, torch.from_numpy(Y), X_TEST * 0.01, Y_TEST) == expected
    assert np.isfinite(knn_accuracy(X, Y, X_TEST, Y_TEST, temperature=1e-4))  # no overflow


def test_a_class_of_the_test_set_only() -> None:
    assert knn_accuracy(X, Y, X_TEST, np.full(len(X_TEST), 9)) == 0.0


def test_wrong_input() -> None:
    for arguments, words in (
        ((X, Y[:-1], X_TEST, Y_TEST), "do not go with"),
        ((X, Y, X_TEST[:, :-1], Y_TEST), "do not go with"),
        ((X[:0], Y[:0], X_TEST, Y_TEST), "at least one"),
        ((X, Y - 1, X_TEST, Y_TEST), "negative"),
        ((X * np.nan, Y, X_TEST, Y_TEST), "finite"),
    ):
        with pytest.raises(UserError, match=words):
            knn_accuracy(*arguments)
    with pytest.raises(UserError, match="k of 1"):
        knn_accuracy(X, Y, X_TEST, Y_TEST, k=0)


def test_captions_are_embedded_some_at_a_time() -> None:
    """A thousand classes with a few templates would take gigabytes."""
    seen: list[int] = []

    def embed(texts: Sequence[str]) -> torch.Tensor:
        seen.append(len(texts))
        return torch.eye(600)[[int(text.split()[1]) for text in texts]]

    language = Language(embed, lambda features: features)
    x, y = np.eye(600, dtype=np.float32)[::7], np.arange(600)[::7]
    names = [str(i) for i in range(600)]
    assert zero_shot_accuracy(x, y, names, language, ("a {}", "the {} here")) == 1
    assert sum(seen) == 1200
    assert max(seen) == CAPTIONS
