"""`Evaluator`: from sets of images to the contents of a `metrics.json`. What `rcg-eval` does, for Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcg.core.errors import UserError
from rcg.core.hardware import pick_device
from rcg.core.schema import read_json
from rcg.data.sources import ImageSource
from rcg.eval import traps
from rcg.eval.arrays import ArraySource, holds_images
from rcg.eval.extractors import open_extractor
from rcg.eval.features import FeatureExtractor
from rcg.eval.images import Images, ImageSet, PipelineImages, Resize, StreamImages, open_images, path_of
from rcg.eval.measure import Change, Wanted, measure
from rcg.eval.metrics import (
    DEFAULT_METRICS,
    FEATURE_SAMPLE,
    REASONS,
    Need,
    Sides,
    compute_metrics,
    metric_name,
    needs,
    none_possible,
    parse_metrics,
    wanted_of,
    why_unavailable,
)
from rcg.eval.processes import Crew, Processes
from rcg.eval.references import ImageStats, Origin, holds_stats, load_stats
from rcg.eval.reports import combine, report

Given = str | Path | Images | Iterable[torch.Tensor]
"""A source of images or an `.npz` of them (see `rcg.eval.images.open_images`), a set, or a stream of uint8 batches."""


NEIGHBORS = 5
"""Nearest training images of a sample that are looked for, where they are shown."""


@dataclass(frozen=True)
class _Reference:
    """What is given as reference, before it is measured: statistics that fit, or images, or both."""

    name: str
    stats: ImageStats | None
    images: Images | None

    @property
    def has_features(self) -> bool:
        """Whether features of single images can be had."""
        return self.images is not None or (self.stats is not None and self.stats.features is not None)

    @property
    def origin(self) -> Origin:
        """How it was made, as far as that is known before it is measured."""
        if self.stats is not None:
            return self.stats.origin
        return Origin(resize=None if self.images is None else self.images.resize)


@dataclass(frozen=True)
class Examined:
    """An evaluation with what it looked at, for those who show it.

    Attributes:
        report: what `rcg.eval.reports.report` makes of it.
        sides: the measured sets.
        generated, reference, train: their images; None where there are none at hand.
    """

    report: dict[str, Any]
    sides: Sides
    generated: Images
    reference: Images | None = None
    train: Images | None = None


class Evaluator:
    """Scores image sets, all measured by one extractor in one way.

    Args:
        extractor: whose features, or its name, see `rcg.eval.extractors.open_extractor`.
        extractor_weights: the weights file of an extractor that is named.
        image_size, resize, limit: see `rcg.eval.images.ImageSet`; of all sources, but not of streams and pipelines.
        seed: of the limit's draw, the sample of features, KID's subsets and whatever else is drawn.
        batch_size: images decoded or drawn at once; None is 16 on a CPU, 64 on a GPU.
        precision: of the extractor, see `rcg.eval.features.run_extractor`.
        device: where the extractor runs.
        feature_sample: images of each set whose features are kept for the metrics that look at single images.
        crew: who measures; None: this process and those that torchrun started beside it.
        on_note: called with each sentence that a reader of the figures should know, once.

    Raises:
        UserError: an extractor that cannot be had.
    """

    def __init__(
        self,
        extractor: FeatureExtractor | str = "inception",
        *,
        extractor_weights: Path | None = None,
        image_size: int | None = None,
        resize: Resize = "antialiased",
        limit: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        precision: str = "fp32",
        device: torch.device | str = "auto",
        feature_sample: int = FEATURE_SAMPLE,
        crew: Crew | None = None,
        on_note: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.crew = crew or Processes.from_environment()
        self.where = self.crew.device(str(device))
        self.device = pick_device(self.where)
        self.extractor = open_extractor(extractor, extractor_weights) if isinstance(extractor, str) else extractor
        self.image_size, self.resize, self.limit, self.seed = image_size, resize, limit, seed
        self.batch_size = batch_size
        self.precision, self.feature_sample, self.on_note = precision, feature_sample, on_note
        self._said: set[str] = set()
        self._change: float | None = None  # of the features by bf16

    def _note(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self.on_note(sentence)

    def open(self, given: Given, what: str) -> Images:
        """The set that is meant; `what` is what messages call it."""
        if isinstance(given, str | Path):
            return self._set(open_images(given), what)
        if isinstance(given, Images):
            return given
        return StreamImages(given, name=f"{what} stream")

    def _set(self, source: ImageSource, what: str) -> ImageSet:
        return ImageSet(source, what, image_size=self.image_size, resize=self.resize, limit=self.limit, seed=self.seed)

    def measure(self, images: Images, wanted: Wanted, what: str, against: Origin | None = None) -> ImageStats:
        """One pass over a set, see `rcg.eval.measure.measure`; refused at its first images if they do not compare."""

        def note_change(change: Change) -> None:
            self._change = change.share
            self._note(f"bf16 moves the features of the first {change.images} images by {100 * change.share:.2g} %.")

        other = None if against is None else against.size
        check = (
            partial(traps.check_sizes, reference=other) if what == "generated" else partial(traps.check_sizes, other)
        )
        return measure(
            self.extractor,
            images,
            wanted,
            seed=self.seed,
            batch_size=self.batch_size,
            device=self.where,
            precision=self.precision,
            crew=self.crew,
            check_size=check,
            on_change=note_change if self._change is None else None,
            label=f"{what} images",
        )

    def make_stats(self, reference: Given) -> ImageStats:
        """All that any metric needs of a reference: to be saved (`rcg.eval.references.save_stats`) or given to `evaluate`."""
        return self._measured_whole(_Reference("", None, self.open(reference, "reference")))

    def measure_reference(self, reference: Given, metrics: Sequence[str]) -> ImageStats:
        """What `metrics` need of a reference, as `evaluate` takes it: statistics where they suffice, else images measured."""
        return self._measured_whole(self._reference(reference, "reference", needs(parse_metrics(metrics))))

    def _measured_whole(self, reference: _Reference | None) -> ImageStats:
        """A reference with all that any metric may need of its images, and what is to be said of these."""
        if reference is not None and (images := reference.images) is not None:
            for note in images.notes + traps.class_notes(images.classes, "reference"):
                self._note(note)
        wanted = Wanted(self.feature_sample, bool(self.extractor.spatial_dim))
        return self._measured(reference, "reference", wanted, None)

    def evaluate(
        self,
        generated: Given,
        *,
        reference: Given | ImageStats | None = None,
        metrics: Sequence[str] = DEFAULT_METRICS,
        held_out: Given | ImageStats | None = None,
        train: Given | None = None,
    ) -> dict[str, Any]:
        """Score generated images.

        Args:
            generated: the images to judge.
            reference: real images or their statistics (an `.npz`, or what `make_stats` gave).
            metrics: names in `rcg.eval.metrics.METRICS`.
            held_out: real images that the model was not trained on, for `fld`, `copies` and `ct`; may be the reference.
            train: all images that the model was trained on, for the same; by default the reference. No limit holds for them.

        Returns:
            What `rcg.eval.reports.report` makes of it; of a pipeline's images also `pipeline`, what they depend on, and of a
            folder that `rcg-sample` made `sampling`, its settings.

        Raises:
            UserError: something given cannot be used or compared, or no metric can be computed.
        """
        return self.examine(generated, reference=reference, metrics=metrics, held_out=held_out, train=train).report

    def examine(
        self,
        generated: Given,
        *,
        reference: Given | ImageStats | None = None,
        metrics: Sequence[str] = DEFAULT_METRICS,
        held_out: Given | ImageStats | None = None,
        train: Given | ImageStats | None = None,
        neighbors: bool = False,
        keep: bool = False,
        serves: Sequence[str] = (),
    ) -> Examined:
        """`evaluate`, with the measured sets and the images.

        Args:
            generated, reference, metrics, held_out, train: see `evaluate`.
            neighbors: look for the nearest training images of the generated ones, whatever the metrics.
            keep: keep features of the generated and the reference images, whatever the metrics.
            serves: further metrics, of other images, that the measured reference is to serve.

        Raises:
            UserError: as `evaluate`; or there is no way to one of `serves`.
        """
        wanted = parse_metrics(metrics)
        if train is not None and _same(train, held_out):
            raise UserError(f"{train} is given as training and as held-out images; give others as --held-out.")
        asked = needs([*wanted, *serves])
        if neighbors:
            asked.add("train")
        if keep:
            asked.add("reference features")
        if train is not None:
            asked -= {"train", "train features"}
        against = self._reference(reference, "reference", asked)
        unseen = (
            against if _same(held_out, reference) else self._reference(held_out, "held-out", {"reference features"})
        )
        learnt = against if train is None else self._training(train)
        missing = self._missing(against, unseen, learnt)
        name = self.extractor.name
        reasons = {metric: why_unavailable(metric, name, missing) for metric in wanted}
        unavailable = {metric_name(metric, name): reason for metric, reason in reasons.items() if reason}
        wanted = [metric for metric in wanted if not reasons[metric]]
        if not wanted:
            raise UserError(none_possible(unavailable))
        for metric in serves:
            if reason := why_unavailable(metric, name, missing):
                raise UserError(f"{metric_name(metric, name)} cannot be computed: {reason}")
        for figure, reason in unavailable.items():
            self._note(f"{figure} is left out: {reason}")
        needed = needs(wanted)
        if unseen is not None and unseen is not against and "held-out" not in needed:
            self._note(f"The held-out images in {unseen.name} play no part: none of these metrics asks for them.")
        seeking = "train" in needed or neighbors
        if seeking and (learnt is None or learnt.images is None):
            raise UserError(REASONS["train"].capitalize())
        if seeking and not self.feature_sample:
            raise UserError("Nearest training images are found by features; --feature-sample must be above 0.")
        if learnt is not None and learnt is against and (seeking or "train features" in needed):
            if unseen is against:
                raise UserError(f"{against.name} is given as reference and as held-out images; give --train-data, too.")
            if seeking and learnt.images is not None and learnt.images.cut:
                raise UserError("--limit leaves training images out, of which all are needed here; give --train-data.")
        images = self.open(generated, "generated")
        extra = _made_by(generated, images)
        measured: dict[int, ImageStats] = {}

        def measure_(side: _Reference | None, what: str, wants: Wanted, against: Origin | None = None) -> ImageStats:
            if id(side) not in measured:
                measured[id(side)] = self._measured(side, what, wants, against)
            return measured[id(side)]

        several = bool({"reference features", "train features", "held-out"} & needed) or keep
        of_real = Wanted(self.feature_sample if several else 0, "spatial" in needed | needs(serves))
        of_fake = wanted_of(wanted, self.feature_sample)
        if seeking or keep:
            of_fake = replace(of_fake, sample=self.feature_sample)
        later = seeking and learnt is against  # the reference is measured once, when it is known what is sought in it
        shown = against is not None and ("reference" in needed or keep)
        uses = {"held-out": unseen if "held-out" in needed else None, "reference": against if shown else None}
        uses["training"] = learnt if seeking or "train features" in needed else None
        for side in (side for side in uses.values() if side is not None):
            traps.check_resize(Origin(resize=images.resize), side.origin)
        real = measure_(against, "reference", of_real) if shown and not later else None
        origin = real.origin if real is not None else None
        if later and against is not None and against.images is not None:
            origin = Origin(size=against.images.size)
        fake = self.measure(images, of_fake, "generated", origin)
        held = measure_(unseen, "held-out", of_real, fake.origin) if "held-out" in needed else None
        known = None
        if seeking or "train features" in needed:
            queries = [fake.features] + ([] if held is None else [held.features])
            near = np.concatenate([rows for rows in queries if rows is not None]) if seeking else None
            wants = replace(of_real, near=near, neighbors=NEIGHBORS)
            known = measure_(learnt, "training", wants, fake.origin)
            real = known if later and shown else real
        sides = Sides(fake, real, held, self.seed, known)
        scores = compute_metrics(wanted, name, sides)
        for figure, reason in scores.unavailable.items():
            self._note(f"{figure} is left out: {reason}")
        scores.unavailable = unavailable | scores.unavailable
        if (labels := extra.get("sampling", {}).get("class_labels")) and isinstance(labels, list):
            scores.notes.append(
                f"The generated images are of {len(labels)} given class(es) in turn, not of random ones."
            )
        scores.notes += images.notes + (against.images.notes if against is not None and against.images else [])
        scores.notes += traps.comparison_notes(fake.origin, None if real is None else real.origin)
        if "train" in needed:
            scores.notes += traps.overlap_notes(sides.nearest()[1].distances[:, 0])
        for note in scores.notes:
            self._note(note)
        names = {"held-out": (held, unseen), "train": (known, learnt if train is not None else None)}
        others = {what: (stats, ref) for what, (stats, ref) in names.items() if stats is not None and ref is not None}
        found = report(
            scores,
            extractor={
                "name": name,
                "weights": self.extractor.weights_hash,
                "resize": self.extractor.resize,
                "precision": self.precision,
            }
            | ({} if self._change is None else {"bf16_change": self._change}),
            counts={"generated": fake.n, "reference": None if real is None else real.n}
            | {what: stats.n for what, (stats, _) in others.items()},
            sources={
                "generated": str(generated) if isinstance(generated, str | Path) else images.name,
                "reference": None if against is None else against.name,
            }
            | {what: ref.name for what, (_, ref) in others.items()},
            sets={"generated": fake.origin}
            | ({} if real is None else {"reference": real.origin})
            | {what: stats.origin for what, (stats, _) in others.items()},
            extra=extra,
        )
        pictures = None if against is None else against.images
        return Examined(found, sides, images, pictures, None if learnt is None else learnt.images)

    def examine_repeats(
        self,
        generated: Sequence[Given],
        *,
        reference: Given | ImageStats | None = None,
        metrics: Sequence[str] = DEFAULT_METRICS,
        held_out: Given | ImageStats | None = None,
        train: Given | None = None,
        neighbors: bool = False,
        keep: bool = False,
        serves: Sequence[str] = (),
    ) -> Examined:
        """Score several sets of one model, such as several seeds: means, with standard deviations under `deviations`.

        See `examine`, whose measured sets and images are those of the first one. Real images are measured once, but for
        `copies` and `ct` the nearest training images are sought anew for each set.
        """
        given = {"metrics": metrics, "held_out": held_out, "train": train, "neighbors": neighbors, "keep": keep}
        first = self.examine(generated[0], reference=reference, serves=serves, **given)  # type: ignore[arg-type]
        if len(generated) == 1:
            return first
        sides, real = first.sides, reference
        seeking = "train" in needs(parse_metrics(metrics))
        if sides.reference is not None and not (seeking and sides.train is sides.reference):
            real = sides.reference
        given["held_out"] = sides.held_out or held_out
        if train is not None and not seeking:
            given["train"] = sides.train or train
        others = [
            self.examine(one, reference=real, **(given | {"neighbors": False, "keep": False})).report  # type: ignore[arg-type]
            for one in generated[1:]
        ]
        found = combine([first.report, *others])
        for note in traps.repeat_notes([one["counts"]["generated"] for one in (first.report, *others)]):
            found["notes"].append(note)
            self._note(note)
        return replace(first, report=found)

    # ------------------------------------------------------------------ references

    def _reference(self, given: Given | ImageStats | None, what: str, needed: set[Need]) -> _Reference | None:
        """Open a reference: statistics are checked against the extractor, images are not looked at yet."""
        if given is None:
            return None
        if isinstance(given, ImageStats):
            given.check(Path(given.origin.source), self.extractor.name, self.extractor.dim, self.extractor.weights_hash)
            return _Reference(given.origin.source, given, None)
        if not isinstance(given, str | Path) or not str(given).endswith(".npz"):
            images = self.open(given, what)
            return _Reference(str(given) if isinstance(given, str | Path) else images.name, None, images)
        path, stats = path_of(given), None
        pictures = self._set(ArraySource(path), what) if holds_images(path) else None
        if holds_stats(path) or pictures is None:
            stats = load_stats(path)
            try:
                stats.check(path, self.extractor.name, self.extractor.dim, self.extractor.weights_hash)
            except UserError:
                if pictures is None:
                    raise
                self._note(f"{path} holds statistics of another extractor, so its {len(pictures)} images are measured.")
                stats = None
        if stats is not None and stats.origin.size is None and pictures is not None:
            sizes = {(int(width), int(height)) for width, height in pictures.source.sizes}
            size = "×".join(map(str, sizes.pop())) if len(sizes) == 1 else None
            stats = replace(stats, origin=replace(stats.origin, size=size))  # of its images, which the file was made of
        rows = {"reference features", "train features"} & needed and (stats is None or stats.features is None)
        if stats is not None and not rows and "train" not in needed:
            pictures = None
        return _Reference(str(given), stats, pictures)

    def _training(self, given: Given | ImageStats) -> _Reference:
        """The training images, all of them; or what has been measured of them."""
        if isinstance(given, ImageStats):
            return _Reference(given.origin.source, given, None)
        if not isinstance(given, str | Path):
            images = self.open(given, "training")
        else:
            source = open_images(given)
            images = ImageSet(source, "training", image_size=self.image_size, resize=self.resize)
        return _Reference(str(given) if isinstance(given, str | Path) else images.name, None, images)

    def _measured(self, reference: _Reference | None, what: str, wanted: Wanted, against: Origin | None) -> ImageStats:
        """The statistics of a reference; measured, where it has images that are needed beside them."""
        assert reference is not None
        if reference.stats is not None:
            traps.check_sizes(None if against is None else against.size, reference.stats.origin.size)
        if reference.images is None:
            assert reference.stats is not None
            return reference.stats
        made = self.measure(reference.images, wanted, what, against)
        if reference.stats is None:
            return made
        return replace(reference.stats.with_features(made), neighbors=made.neighbors)

    def _missing(
        self, reference: _Reference | None, held_out: _Reference | None, train: _Reference | None
    ) -> set[Need]:
        there: dict[Need, bool] = {
            "logits": self.extractor.has_logits,
            "spatial": bool(self.extractor.spatial_dim),
            "clip": self.extractor.name == "clip",
            "reference": reference is not None,
            "reference features": reference is not None and reference.has_features,
            "held-out": held_out is not None and held_out.has_features,
            "train features": train is not None and train.has_features,
            "train": train is not None and train.images is not None,
            "features": bool(self.feature_sample),
        }
        return {need for need, is_there in there.items() if not is_there}


def _same(given: Given | ImageStats | None, other: Given | ImageStats | None) -> bool:
    """Whether two arguments name the same images."""
    if isinstance(given, str | Path) and isinstance(other, str | Path):
        return path_of(given) == path_of(other)
    return given is not None and given is other


def _made_by(given: Given, images: Images) -> dict[str, Any]:
    """What is known of how generated images were made."""
    if isinstance(images, PipelineImages):
        return {"pipeline": images.identity()}
    if isinstance(given, str | Path) and (manifest := path_of(given) / "sampling.json").is_file():
        settings = read_json(manifest).get("settings")
        return {"sampling": settings} if isinstance(settings, dict) else {}
    return {}


def evaluate(
    generated: Given,
    *,
    reference: Given | ImageStats | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    extractor: FeatureExtractor | str = "inception",
    extractor_weights: Path | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    precision: str = "fp32",
    device: torch.device | str = "auto",
    on_note: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """`Evaluator(extractor, …).evaluate(generated, reference=…, metrics=…)` in one call; see there for everything."""
    evaluator = Evaluator(
        extractor,
        extractor_weights=extractor_weights,
        image_size=image_size,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        device=device,
        on_note=on_note,
    )
    return evaluator.evaluate(generated, reference=reference, metrics=metrics)
