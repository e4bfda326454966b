"""Where the conditions of new images come from: a table of real images' conditions, or an RDM."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.rng import Noise
from rcg.encoders.ssl_encoder import standardize
from rcg.inversion.choices import Choice, Chooser, Place
from rcg.rdm.protocol import RepresentationGenerator as RDM
from rcg.rdm.protocol import Request
from rcg.sampling.inputs import resolve_labels

_RDM, _IMAGE, _GUIDANCE = 31, 32, 33
"""Names of random streams."""


@dataclass(frozen=True)
class Proposal:
    """Conditions of B images, and where they come from.

    Attributes:
        conditions: float32 [B, *shape].
        scales: guidance scale of each.
        seeds: of the generator's random numbers, one an image.
        records: what is to be known of each (JSON values).
    """

    conditions: Tensor
    scales: list[float]
    seeds: list[int]
    records: list[dict[str, Any]]


class Proposer(Protocol):
    """Where conditions come from.

    Attributes:
        classes: that it can propose for; [None] without classes.
    """

    classes: list[int | None]

    def propose(self, places: Sequence[Place]) -> Proposal:
        """Conditions for places; each follows from its own place alone."""
        ...

    def settings(self) -> dict[str, Any]:
        """All that the proposals depend on (JSON values)."""
        ...


class FromTable:
    """Conditions of real images, interpolated and perturbed: inverted ones, or an encoder's representations.

    Args:
        table: float32 [N, *shape], may be mapped from a file.
        ids: a name for each row.
        fingerprint: of the table.
        chooser: what is taken from it.
        standardized: bring each condition [D] back to mean 0 and deviation 1, as the encoder's output is.
    """

    def __init__(
        self, table: np.ndarray, ids: Sequence[str], fingerprint: str, chooser: Chooser, *, standardized: bool = False
    ) -> None:
        if standardized and table.ndim != 2:
            raise UserError(f"conditions of shape {list(table.shape[1:])} have no standardised form; leave it out.")
        self.table, self.ids, self.fingerprint, self.chooser = table, ids, fingerprint, chooser
        self.standardized = standardized
        self.classes = chooser.classes

    def settings(self) -> dict[str, Any]:
        """See the protocol."""
        variation = self.chooser.variation
        rows = hashlib.sha256(self.chooser.rows.astype("<i8").tobytes()).hexdigest()[:16]
        return {
            "from": "table",
            "table": self.fingerprint,
            "rows": rows,
            "seed": self.chooser.seed,
            "noise": list(variation.noise),
            "interpolation": list(variation.interpolation),
            "guidance": list(variation.guidance),
            "partners": variation.partners,
            "standardized": self.standardized,
        }

    def propose(self, places: Sequence[Place]) -> Proposal:
        """See the protocol."""
        choices = [self.chooser.choose(place) for place in places]
        conditions = self.chooser.conditions(self.table, choices)
        if self.standardized:
            conditions = standardize(conditions)
        scales, seeds = [c.guidance for c in choices], [c.image_seed for c in choices]
        return Proposal(conditions, scales, seeds, [self._record(c) for c in choices])

    def _record(self, choice: Choice) -> dict[str, Any]:
        rows = [(choice.source, 1 - choice.interpolation)]
        if choice.partner is not None:
            rows.append((choice.partner, choice.interpolation))
        return {
            "sources": [{"id": self.ids[row], "row": row, "share": share} for row, share in rows],
            "noise": choice.noise,
            "guidance": choice.guidance,
            "noise_seed": choice.noise_seed,
            "seed": choice.image_seed,
        }


class FromRDM:
    """Representations drawn by an RDM, of the class asked for: no single image is their source.

    Args:
        rdm: with classes; one without, or with clusters, serves a set without classes.
        identity: of it, for the record.
        classes: to draw for; [None] without classes: clusters are drawn as often as the RDM has counted them.
        seed: of all draws.
        guidance: scales of the image generator; each image draws one of them.
        steps, rdm_guidance: of the RDM.

    Raises:
        UserError: classes that the RDM does not know.
    """

    def __init__(
        self,
        rdm: RDM,
        identity: str,
        classes: list[int | None],
        seed: int,
        guidance: tuple[float, ...] = (1.0,),
        steps: int | None = None,
        rdm_guidance: float = 1.0,
    ) -> None:
        known, self.counts = (
            int(rdm.model.config.num_classes),
            rdm.model.config.label_counts if classes == [None] else None,
        )
        none = known == 0 or self.counts is not None
        if bad := [c for c in classes if (c is None) != none or (c is not None and not 0 <= c < known)]:
            what = f"knows classes 0 to {known - 1}" if known else "knows no classes"
            raise UserError(f"images of class {bad[0]} are wanted, but this RDM {what}; take another RDM.")
        if not guidance:
            raise UserError("guidance is an empty list; give one scale or more.")
        self.rdm, self.identity, self.classes, self.seed = rdm, identity, classes, seed
        self.guidance, self.steps, self.rdm_guidance = guidance, steps, rdm_guidance

    def settings(self) -> dict[str, Any]:
        """See the protocol."""
        return {
            "from": "rdm",
            "rdm": self.identity,
            "seed": self.seed,
            "guidance": list(self.guidance),
            "steps": self.steps,
            "rdm_guidance": self.rdm_guidance,
            **({} if self.counts is None else {"label_counts": self.counts}),
        }

    @torch.no_grad()
    def propose(self, places: Sequence[Place]) -> Proposal:
        """See the protocol."""
        device = self.rdm.model.device
        drawn = [place.seed(self.seed, _RDM) for place in places]
        asked: Any = None if self.classes == [None] else [place.label for place in places]
        labels = resolve_labels(asked, len(places), int(self.rdm.model.config.num_classes), drawn, self.counts)
        request = Request(
            noise=Noise(drawn, device),
            class_labels=None if labels is None else labels.to(device),
            num_inference_steps=self.steps,
            guidance_scale=self.rdm_guidance,
        )
        conditions = self.rdm.draw(request).float()
        scales = [self.guidance[place.seed(self.seed, _GUIDANCE) % len(self.guidance)] for place in places]
        seeds = [place.seed(self.seed, _IMAGE) for place in places]
        records: list[dict[str, Any]] = [
            {"sources": [], "rdm_seed": r, "guidance": g, "seed": s}
            for r, g, s in zip(drawn, scales, seeds, strict=True)
        ]
        return Proposal(conditions, scales, seeds, records)
