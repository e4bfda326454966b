"""Which of the images that were drawn are kept: those that stayed in their class, and the hard ones among them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg.core.blocks import in_blocks
from rcg.core.errors import UserError

BLOCK = 32
"""Images that are looked at together on a CPU, see `rcg.core.blocks.in_blocks`."""


def _run(module: nn.Module, images: Tensor, then: Callable[[Tensor], Tensor]) -> Tensor:
    """What `then` makes of a module's output for images, where the module is; an image's bits do not depend on the others."""
    weights = next(module.parameters(), None)
    return in_blocks(lambda x: then(module(x)), BLOCK, images if weights is None else images.to(weights.device))


class ClassFilter:
    """Keeps images whose features lie among those of real images of their class (k nearest by cosine).

    Args:
        extractor: images float [B, 3, S, S] in [0, 1] → features [B, D]; an `SSLEncoder`, say.
        name: of it, with its weights, for the record.
        features: float [N, D] of the real images.
        labels: int64 [N] of these.
        neighbors: k, at most N.
        agreement: least share of the neighbours that must be of the class, in (0, 1].

    Raises:
        UserError: a number out of range, or not as many labels as features.
    """

    def __init__(
        self,
        extractor: nn.Module,
        name: str,
        features: Tensor,
        labels: np.ndarray | Tensor,
        neighbors: int = 10,
        agreement: float = 0.5,
    ) -> None:
        if not 1 <= neighbors <= len(features):
            raise UserError(f"neighbors is {neighbors}, but it must lie in [1, {len(features)}].")
        if not 0 < agreement <= 1:
            raise UserError(f"agreement is {agreement}, but it must lie in (0, 1].")
        if len(labels) != len(features):
            raise UserError(f"there are {len(features)} features and {len(labels)} labels; give one label for each.")
        self.extractor, self.name = extractor.eval(), name
        self.features = F.normalize(features.float(), dim=1)
        self.labels = torch.as_tensor(labels).long()
        self.neighbors, self.agreement = neighbors, agreement

    def settings(self) -> dict[str, Any]:
        """All that its verdicts depend on (JSON values)."""
        real = hashlib.sha256(self.features.cpu().numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()[:16]
        return {"extractor": self.name, "real": real, "neighbors": self.neighbors, "agreement": self.agreement}

    def require(self, label: int, name: str) -> None:
        """Raise `UserError` for a class of so few real images that no image can pass."""
        there = int((self.labels == label).sum())
        if min(there, self.neighbors) / self.neighbors < self.agreement:
            way_out = "add some"
            if there:
                share = math.floor(10**6 * there / self.neighbors) / 10**6
                way_out += (
                    f", or take at most --neighbors {math.floor(there / self.agreement)} or --agreement {share:g}"
                )
            raise UserError(
                f"no image of class {name} can pass the filter: {self.agreement:g} of its {self.neighbors} neighbours must be "
                f"of the class, of which there are only {there} real images; {way_out}."
            )

    @torch.no_grad()
    def shares(self, images: Tensor, labels: Sequence[int | None]) -> list[float]:
        """Of each image float [B, 3, S, S], the share of its k nearest real neighbours that have its label."""
        nearest = _run(self.extractor, images, self._cosines).topk(self.neighbors, dim=1).indices.cpu()
        wanted = torch.tensor([-1 if label is None else label for label in labels])
        shares: list[float] = (self.labels[nearest] == wanted[:, None]).double().mean(dim=1).tolist()
        return shares

    def _cosines(self, found: Tensor) -> Tensor:
        """[B, N] with the real images' features, which stay where they are needed."""
        self.features = self.features.to(found.device)
        return F.normalize(found.float(), dim=1) @ self.features.T


class Hard:
    """Of several candidates for a place, keeps the one of which a classifier is least certain.

    Args:
        classifier: images float [B, 3, S, S] in [0, 1] → logits [B, C].
        name: of it, with its weights, for the record.
        candidates: for each place; with a filter, that passed it.

    Raises:
        UserError: fewer than two candidates.
    """

    def __init__(self, classifier: nn.Module, name: str, candidates: int = 4) -> None:
        if candidates < 2:
            raise UserError(f"candidates is {candidates}, but there must be two at least to choose from.")
        self.classifier, self.name, self.candidates = classifier.eval(), name, candidates

    def settings(self) -> dict[str, Any]:
        """All that the choice depends on (JSON values)."""
        return {"classifier": self.name, "candidates": self.candidates}

    @torch.no_grad()
    def entropies(self, images: Tensor) -> list[float]:
        """Entropy of the predicted classes of each image float [B, 3, S, S], in nats, in [0, ln C]."""
        logs = _run(self.classifier, images, lambda logits: F.log_softmax(logits.double(), dim=1))
        found: list[float] = (-(logs.exp() * logs).sum(dim=1)).clamp_min(0).tolist()
        return found
