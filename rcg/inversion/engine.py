"""Training sets made by a generator: conditions proposed, images drawn, selected and kept; every image traced.

A set is a folder of images, one sub-folder a class, or of shards (`rcg.inversion.stores`), with `images.jsonl`: a line for
each image that says what it was made from.
"""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from tqdm import tqdm

from rcg.core.errors import UserError
from rcg.core.files import claimed
from rcg.core.pictures import to_pil
from rcg.inversion.choices import Place
from rcg.inversion.frozen import FrozenGenerator
from rcg.inversion.proposers import Proposer
from rcg.inversion.selection import ClassFilter, Hard
from rcg.inversion.stores import Store


def balanced(total: int, classes: Sequence[int | None]) -> dict[int | None, int]:
    """`total` images over classes as evenly as can be: the first ones get one more where it does not divide."""
    each, more = divmod(total, len(classes))
    return {label: each + (i < more) for i, label in enumerate(classes)}


@dataclass
class _Work:
    """A place that is being filled.

    Attributes:
        place: with its next attempt.
        passed: candidates that passed the filter so far.
        best: the hardest of them.
    """

    place: Place
    passed: int = 0
    best: tuple[float, Image.Image, dict[str, Any]] | None = None


def make_set(
    generator: FrozenGenerator,
    proposer: Proposer,
    counts: Mapping[int | None, int],
    store: Store,
    *,
    identity: str,
    class_names: Sequence[str] = (),
    keep: ClassFilter | None = None,
    hard: Hard | None = None,
    attempts: int = 5,
    batch_size: int = 32,
    resume: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Make a set of images, as far as it is not there yet.

    Args:
        generator: conditions → images; prepared.
        proposer: → conditions.
        counts: how many of each class.
        store: where they are kept.
        identity: of the generator.
        class_names: by label; needed where there are classes.
        keep: drops images that fell out of their class; the place then has further attempts.
        hard: chooses among several candidates for each place.
        attempts: for each candidate of a place, on average, before no more are drawn; a place without any is left empty
            (there is a warning).
        batch_size: images drawn at a time; it changes nothing else.
        resume: whether a set that was begun there with the same settings is gone on with.
        overwrite: whether what is there may be thrown away.
        progress: show a bar.

    Returns:
        The records of all images that are there, as in the manifest.

    Raises:
        UserError: counts of unknown classes, or a folder that holds something else or a set with other settings, or where
            another process is at work.
    """
    for label, count in counts.items():
        if label not in proposer.classes or count < 0 or (label is not None and label >= len(class_names)):
            raise UserError(f"{count} images of class {label} cannot be made; the classes are {proposer.classes}.")
    if attempts < 1 or batch_size < 1:
        raise UserError("attempts and batch_size must be at least 1.")
    if keep is not None and None in counts:
        raise UserError("a filter by classes needs classes, but these images have none; leave it out.")
    for label, count in counts.items():
        if keep is not None and label is not None and count:
            keep.require(label, class_names[label])
    settings = {
        "generator": identity,
        "drawing": generator.drawing(),
        "conditions": proposer.settings(),
        "filter": None if keep is None else {**keep.settings(), "attempts": attempts},
        "hard": None if hard is None else hard.settings(),
        "classes": list(class_names),
    }
    places = [Place(label, i) for label, count in counts.items() for i in range(count)]
    with claimed(store.out, shared=store.share.world > 1, run=settings):
        ahead: list[_Work] = []
        if overwrite:  # drawn before anything is thrown away: what fails at once leaves the folder as it was
            store.check(resume=False, overwrite=True)
            ahead = [_Work(place) for place in store.own(places)[:batch_size]]
        if ahead:
            _draw(generator, proposer, keep, hard, ahead, store, class_names)
        store.claim(json.loads(json.dumps(settings)), places, resume=resume, overwrite=overwrite)
        candidates = 1 if hard is None else hard.candidates
        most = candidates * (1 if keep is None else attempts)
        todo = deque(_Work(place) for place in store.open(places))
        with tqdm(total=len(todo), unit=" images", disable=not progress) as bar:
            while todo:
                batch = [todo.popleft() for _ in range(min(batch_size, len(todo)))]
                again: list[_Work] = []
                if ahead:
                    batch, ahead = ahead, []  # of the same places
                else:
                    _draw(generator, proposer, keep, hard, batch, store, class_names)
                for work in batch:
                    if work.passed < candidates and work.place.attempt + 1 < most:
                        work.place = replace(work.place, attempt=work.place.attempt + 1)
                        again.append(work)
                    elif work.best is not None:
                        store.keep(replace(work.place, attempt=0), work.best[1], work.best[2])
                    else:
                        store.leave_out(replace(work.place, attempt=0))
                bar.update(len(batch) - len(again))
                todo.extendleft(reversed(again))  # at once, so that few places are open at a time
        if left_out := store.left_out(places):
            warnings.warn(
                f"{left_out} of {len(places)} images fell out of their class in all {most} attempts and are left out; lower "
                "the agreement or vary less for a balanced set.",
                stacklevel=2,
            )
        return store.close(places)


def _draw(
    generator: FrozenGenerator,
    proposer: Proposer,
    keep: ClassFilter | None,
    hard: Hard | None,
    batch: Sequence[_Work],
    store: Store,
    class_names: Sequence[str],
) -> None:
    """One more image for each place; those that stay in their class count, and the hardest is remembered."""
    places = [work.place for work in batch]
    proposal = proposer.propose(places)
    images = generator.draw(proposal.conditions, proposal.scales, proposal.seeds)
    shares = None if keep is None else keep.shares(images, [place.label for place in places])
    entropies = None if hard is None else hard.entropies(images)
    for i, (work, image) in enumerate(zip(batch, to_pil(images), strict=True)):
        if shares is not None and keep is not None and shares[i] < keep.agreement:
            continue
        work.passed += 1
        entropy = 0.0 if entropies is None else entropies[i]
        if work.best is not None and entropy <= work.best[0]:
            continue
        place = work.place
        record: dict[str, Any] = {
            "file": store.file(place),
            "label": place.label,
            "class": None if place.label is None else class_names[place.label],
            "attempt": place.attempt,
            **proposal.records[i],
        }
        if shares is not None:
            record["agreement"] = shares[i]
        if entropies is not None:
            record["entropy"] = entropies[i]
        work.best = entropy, image, record
