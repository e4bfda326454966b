"""Probes: how much a representation knows about labels it was not trained on. So far the weighted k-NN classifier."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from rcg.core.errors import UserError

CHUNK = 512  # test samples compared at once


def knn_accuracy(
    train_features: np.ndarray | torch.Tensor,
    train_labels: np.ndarray | torch.Tensor,
    test_features: np.ndarray | torch.Tensor,
    test_labels: np.ndarray | torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy of the weighted k-NN classifier (Wu et al. 2018, Instance Discrimination, §3.4; as DINO reports it).

    Each of the `k` training samples nearest by cosine votes for its class with weight exp(cosine / temperature).

    Args:
        train_features: [N, D], any scale (they are normalised here; a zero vector stays zero).
        train_labels: integers [N], from 0.
        test_features: [M, D].
        test_labels: integers [M].
        k: neighbours; all N if there are fewer.
        temperature: of the votes.

    Returns:
        The fraction of test samples whose class wins, in [0, 1].

    Raises:
        UserError: empty sets, lengths or widths that do not match, negative labels, features that are not finite,
            k < 1 or temperature ≤ 0.
    """
    train, test = (F.normalize(torch.as_tensor(x).float(), dim=1) for x in (train_features, test_features))
    labels, truth = (torch.as_tensor(y).long() for y in (train_labels, test_labels))
    if len(train) == 0 or len(test) == 0:
        raise UserError("k-NN accuracy needs at least one training and one test sample.")
    if train.shape[1:] != test.shape[1:] or len(train) != len(labels) or len(test) != len(truth):
        raise UserError(
            f"k-NN accuracy: features {list(train.shape)} and {list(test.shape)} do not go with "
            f"{len(labels)} and {len(truth)} labels; give [N, D] with N labels and [M, D] with M labels."
        )
    if k < 1 or temperature <= 0:
        raise UserError(f"k-NN accuracy needs k of 1 or more and a temperature above 0, not {k} and {temperature}.")
    if min(int(labels.min()), int(truth.min())) < 0:
        raise UserError("k-NN accuracy: labels must not be negative; leave out samples without a label.")
    if not (torch.isfinite(train).all() and torch.isfinite(test).all()):
        raise UserError("k-NN accuracy: some features are not finite.")
    k = min(k, len(train))
    labels, truth = labels.to(train.device), truth.to(test.device)
    classes = int(labels.max()) + 1
    correct = 0
    for x, y in zip(test.split(CHUNK), truth.split(CHUNK), strict=True):
        similarity, neighbors = (x @ train.T).topk(k, dim=1)
        # dividing all weights of a sample by their largest changes no vote and avoids overflow at low temperature
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(x), classes, device=x.device).scatter_add_(1, labels[neighbors], weights)
        correct += int((votes.argmax(dim=1) == y).sum())
    return correct / len(test)
