"""Training sets made by a generator: conditions of real images varied, or drawn by an RDM; filtered; every image traced.

A set is a folder of images, one sub-folder a class, with `images.jsonl`: a line for each image that says what it was made
from. The same line stands in the image's own file (PNG text `rcg-record`), which is what a resumed run goes by.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from rcg.core.errors import UserError
from rcg.core.files import atomic_file, write_json
from rcg.core.pictures import png_text, save_png, to_pil
from rcg.core.rng import Noise
from rcg.core.schema import read_json
from rcg.encoders.ssl_encoder import standardize
from rcg.inversion.choices import Choice, Chooser, Place
from rcg.inversion.frozen import FrozenGenerator
from rcg.rdm.protocol import RepresentationGenerator as RDM
from rcg.rdm.protocol import Request

MANIFEST, SETTINGS = "images.jsonl", "set.json"
_RDM, _IMAGE, _GUIDANCE = 31, 32, 33


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
        rdm: with classes; one without serves a set without classes.
        identity: of it, for the record.
        classes: to draw for; [None] without classes.
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
        known = int(rdm.model.config.num_classes)
        if bad := [c for c in classes if (c is None) != (known == 0) or (c is not None and not 0 <= c < known)]:
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
        }

    @torch.no_grad()
    def propose(self, places: Sequence[Place]) -> Proposal:
        """See the protocol."""
        device = self.rdm.model.device
        drawn = [place.seed(self.seed, _RDM) for place in places]
        labels = None if self.classes == [None] else torch.tensor([place.label for place in places], device=device)
        request = Request(
            noise=Noise(drawn, device),
            class_labels=labels,
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

    @torch.no_grad()
    def shares(self, images: Tensor, labels: Sequence[int | None]) -> list[float]:
        """Of each image float [B, 3, S, S], the share of its k nearest real neighbours that have its label."""
        found = F.normalize(self.extractor(images).float(), dim=1)
        nearest = (found @ self.features.to(found.device).T).topk(self.neighbors, dim=1).indices.cpu()
        wanted = torch.tensor([-1 if label is None else label for label in labels])
        shares: list[float] = (self.labels[nearest] == wanted[:, None]).double().mean(dim=1).tolist()
        return shares


def balanced(total: int, classes: Sequence[int | None]) -> dict[int | None, int]:
    """`total` images over classes as evenly as can be: the first ones get one more where it does not divide."""
    each, more = divmod(total, len(classes))
    return {label: each + (i < more) for i, label in enumerate(classes)}


def make_set(
    generator: FrozenGenerator,
    proposer: Proposer,
    counts: Mapping[int | None, int],
    out: Path,
    *,
    identity: str,
    class_names: Sequence[str] = (),
    keep: ClassFilter | None = None,
    attempts: int = 5,
    batch_size: int = 32,
    share: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Make a set of images, as far as it is not there yet.

    Args:
        generator: conditions → images; prepared.
        proposer: → conditions.
        counts: how many of each class.
        out: folder; a set that was begun there with the same settings is gone on with.
        identity: of the generator.
        class_names: names of the sub-folders, by class; needed where there are classes.
        keep: drops images that fell out of their class; the place then has further attempts.
        attempts: of a place, before it is left empty (there is a warning).
        batch_size: images drawn at a time; it changes nothing else.
        share: (rank, world): this process makes the places rank, rank + world, …; the manifest is complete once all are done.
        progress: show a bar.

    Returns:
        The records of all images that are there, as in the manifest.

    Raises:
        UserError: counts of unknown classes, or a folder that holds something else or a set with other settings.
    """
    for label, count in counts.items():
        if label not in proposer.classes or count < 0 or (label is not None and label >= len(class_names)):
            raise UserError(f"{count} images of class {label} cannot be made; the classes are {proposer.classes}.")
    if attempts < 1 or batch_size < 1:
        raise UserError("attempts and batch_size must be at least 1.")
    if keep is not None and None in counts:
        raise UserError("a filter by classes needs classes, but these images have none; leave it out.")
    settings = {
        "generator": identity,
        "drawing": generator.drawing(),
        "conditions": proposer.settings(),
        "filter": None if keep is None else {**keep.settings(), "attempts": attempts},
        "classes": list(class_names),
    }
    run = _claim(out, settings)
    files = {
        Place(label, i): _file(out, class_names, label, i) for label, count in counts.items() for i in range(count)
    }
    own = list(files)[share[0] :: share[1]]
    todo = [place for place in own if (png_text(files[place]) or {}).get("rcg-run") != run]
    dropped = 0
    with tqdm(total=len(todo), unit=" images", disable=not progress or share[0] > 0) as bar:
        while todo:
            batch, todo = todo[:batch_size], todo[batch_size:]
            for place, image, record in _draw(generator, proposer, keep, batch, out, files, class_names):
                if record is not None:
                    text = {"rcg-run": run, "rcg-record": json.dumps(record)}
                    save_png(files[Place(place.label, place.position)], image, text)
                    bar.update()
                elif place.attempt + 1 < attempts:
                    todo.append(Place(place.label, place.position, place.attempt + 1))
                else:
                    dropped += 1
    if dropped:
        warnings.warn(
            f"{dropped} of {len(own)} images fell out of their class in all {attempts} attempts and are left out; lower "
            "the agreement or vary less for a balanced set.",
            stacklevel=2,
        )
    texts = [png_text(file) or {} for file in files.values()]
    records = [json.loads(text["rcg-record"]) for text in texts if text.get("rcg-run") == run]
    with atomic_file(out / MANIFEST) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def _draw(
    generator: FrozenGenerator,
    proposer: Proposer,
    keep: ClassFilter | None,
    places: Sequence[Place],
    out: Path,
    files: Mapping[Place, Path],
    class_names: Sequence[str],
) -> list[tuple[Place, Image.Image, dict[str, Any] | None]]:
    """Images of places, each with its record, or None where it fell out of its class."""
    proposal = proposer.propose(places)
    images = generator.draw(proposal.conditions, proposal.scales, proposal.seeds)
    shares = None if keep is None else keep.shares(images, [place.label for place in places])
    result: list[tuple[Place, Image.Image, dict[str, Any] | None]] = []
    for i, (place, image) in enumerate(zip(places, to_pil(images), strict=True)):
        if shares is not None and keep is not None and shares[i] < keep.agreement:
            result.append((place, image, None))
            continue
        record: dict[str, Any] = {
            "file": files[Place(place.label, place.position)].relative_to(out).as_posix(),
            "label": place.label,
            "class": None if place.label is None else class_names[place.label],
            "attempt": place.attempt,
            **proposal.records[i],
        }
        if shares is not None:
            record["agreement"] = shares[i]
        result.append((place, image, record))
    return result


def _file(out: Path, class_names: Sequence[str], label: int | None, position: int) -> Path:
    folder = out if label is None else out / class_names[label]
    return folder / f"{position:06d}.png"


def _claim(out: Path, settings: dict[str, Any]) -> str:
    """Name the run, and write down whose images the folder holds; `UserError` if those of somebody else."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    file = out / SETTINGS
    if file.is_file():
        held = read_json(file, way_out="choose another folder")
        if differing := [k for k in plain if held.get(k) != plain[k]]:
            raise UserError(f"{out} holds images made with other {differing[0]}; choose another folder.")
    elif out.is_dir() and (found := sorted(p.name for p in out.iterdir() if not p.name.startswith("."))):
        raise UserError(f"{out} is not empty and holds no such set ({found[0]}); choose another folder.")
    elif out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give the name of a folder.")
    else:
        write_json(file, plain)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
