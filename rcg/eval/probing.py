"""Probing an extractor on sets of labelled images: from images to figures. What `rcg-eval --probe` does, for Python.

Features are computed once and stay in a cache on the disk (`rcg.data.cache`), in a folder that is named by a hash of the
images, the weights and how the one was shown to the other: asking again, or for another probe, runs no network. Several
processes compute a part each; the first of them probes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rcg.core.errors import UserError
from rcg.core.rng import derive_seed
from rcg.data.build import CacheField, Precision, build_cache
from rcg.data.cache import Cache
from rcg.data.image_source import divide
from rcg.data.layout import is_cache
from rcg.data.sources import ImageSource, open_source
from rcg.data.verify import user_cache_dir
from rcg.eval.features import FeatureExtractor
from rcg.eval.images import path_of
from rcg.eval.linear_probe import LEARNING_RATES, few_shot_accuracy, linear_probe
from rcg.eval.probes import knn_accuracy
from rcg.eval.processes import Processes

T = TypeVar("T")
ProbeName = Literal["linear", "knn", "few_shot", "zero_shot"]
PROBES: tuple[ProbeName, ...] = ("linear", "knn", "few_shot", "zero_shot")
BATCH = 64
"""Images in one pass of the extractor; always as many, so that features are equal to the bit."""
LARGEST_PART = 128 * BATCH
"""Images in a file of features that several processes make, at most; whole passes, which are then those of one process."""
CAPTIONS = 256
"""Embedded at once."""
TEST_SHARE = 0.2
"""Of a set without test images that is kept for testing."""
TRAINING_NAMES, TEST_NAMES = {"train", "training"}, {"test", "testing", "val", "valid", "validation"}
"""Sub-folders that are the halves of a set, not classes."""


@dataclass(frozen=True)
class Labelled:
    """One side of a probe.

    Attributes:
        features: float32 [N, D].
        labels: int64 [N], numbers in `class_names`.
        class_names: of the whole set.
        origin: JSON: which images these are.
        families: int64 [N], see `ImageSource.families`.
    """

    features: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    origin: dict[str, Any]
    families: np.ndarray

    def part(self, rows: np.ndarray, **origin: Any) -> Labelled:
        """Some of the samples."""
        return Labelled(
            self.features[rows], self.labels[rows], self.class_names, self.origin | origin, self.families[rows]
        )


@dataclass(frozen=True)
class Language:
    """The language side of an encoder, for zero-shot classification.

    Attributes:
        embed_texts: captions → [B, E].
        embed_features: features [N, D] → [N, E], on the CPU.
    """

    embed_texts: Callable[[Sequence[str]], Tensor]
    embed_features: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ProbeSettings:
    """Which probes, and how; see `rcg.eval.linear_probe`, `rcg.eval.probes` and `zero_shot_accuracy`.

    Attributes:
        probes: which ones; None is all that are possible.
        learning_rates, epochs, batch_norm: of the linear probe.
        neighbors: k of k-NN.
        ways, shots, queries, episodes: of few-shot episodes, made of test samples.
        templates: sentences with {} for the class.
        seed: of splits, orders and episodes.
    """

    probes: tuple[ProbeName, ...] | None = None
    learning_rates: tuple[float, ...] = LEARNING_RATES
    epochs: int = 90
    batch_norm: bool = True
    neighbors: int = 20
    ways: int = 5
    shots: int = 5
    queries: int = 15
    episodes: int = 600
    templates: tuple[str, ...] = ("a photo of a {}",)
    seed: int = 0


def halves_of(spec: str) -> tuple[str, str] | None:
    """The training and test images of a folder that holds just these two (or three) as sub-folders; None of any other set.

    Raises:
        UserError: there are training images only, or test images only, or several sets of test images but no `test`.
    """
    folder = path_of(spec)
    if not folder.is_dir():
        return None
    names = {p.name.lower(): p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
    if not names or not names.keys() <= TRAINING_NAMES | TEST_NAMES:
        return None
    train, test = ([names[n] for n in sorted(names.keys() & known)] for known in (TRAINING_NAMES, TEST_NAMES))
    if "test" in names:
        test = [names["test"]]
    if len(train) != 1 or len(test) != 1:
        raise UserError(
            f"{spec} holds {', '.join(sorted(p.name for p in names.values()))}, which do not say what to train and what to "
            "test on; give both, with --probe TRAIN --probe-test TEST."
        )
    return str(train[0]), str(test[0])


def open_labelled(spec: str | Path) -> ImageSource:
    """A source whose images have labels of at least two classes.

    Raises:
        UserError: there is no such source, or it has none.
    """
    source = open_source(spec, min_size=1)
    if source.labels is None or len(source.class_names) < 2:
        raise UserError(f"{spec} has no labels of two or more classes; sort its images into one folder a class.")
    return source


def common_size(source: ImageSource, size: int | None) -> int:
    """The side at which the extractor is shown the images: the one given, or their own.

    Raises:
        UserError: none is given, and they differ or are no squares.
    """
    if size is not None:
        return size
    sizes = {(int(w), int(h)) for w, h in np.unique(source.sizes, axis=0)}
    width, height = min(sizes)
    if len(sizes) > 1 or width != height:
        raise UserError(
            f"the images of {source.name} are not squares of one size; give --image-size S to frame them alike."
        )
    return width


def feature_folder(
    root: Path, source: ImageSource, extractor: FeatureExtractor, size: int, precision: Precision
) -> Path:
    """Where features are kept: equal exactly when images, labels, weights, framing and arithmetic are."""
    text = f"{source.fingerprint} {extractor.name} {extractor.weights_hash} {extractor.dim} {size} {precision}"
    return root / hashlib.sha256(f"{text} {source.label_digest()}".rstrip().encode()).hexdigest()[:24]


def cached_features(
    source: ImageSource,
    extractor: FeatureExtractor,
    *,
    size: int | None = None,
    root: Path | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    progress: bool = True,
    processes: Processes | None = None,
) -> Labelled:
    """The features of all images of a source: read, or computed as far as they are not there yet.

    Args:
        source: with labels.
        extractor: whose features.
        size: see `common_size`; short sides are resized with antialias, squares cut from the centre.
        root: folder that holds the features of many sets and extractors; None: `features` in the user's cache folder.
        device, precision: of the extractor.
        progress: show a progress bar.
        processes: this one and the others, each of which computes files of its own (and sees those of the others: `root` is to
            be a folder that all share). The features are those of one process, to the bit.

    Raises:
        UserError: images that need a size, features that are not finite, or a folder that holds something else.
    """
    assert source.labels is not None
    side = common_size(source, size)
    processes, root = processes or Processes(), root or user_cache_dir() / "features"
    folder = feature_folder(root, source, extractor, side, precision)

    def compute(images: Tensor) -> Tensor:
        return extractor(images.mul(255).round().to(torch.uint8)).features

    part = None
    if processes.world > 1 and not processes.gather(is_cache(folder))[0]:  # asked before anybody begins one
        part = min(
            LARGEST_PART, BATCH * -(-len(source) // (BATCH * processes.world))
        )  # so that each has something to do
    build_cache(
        source,
        folder,
        {"features": CacheField(extractor, compute)},
        side,
        batch_size=BATCH,
        shard_size=part,
        device=device,
        precision=precision,
        rank=processes.rank,
        world=processes.world,
        progress=progress,
        command="the same rcg-eval --probe",
    )
    processes.gather(None)  # when all are done
    origin = {"name": source.name, "fingerprint": source.fingerprint, "images": len(source), "image_size": side,
              "unusable": len(source.skipped), "features": str(folder)}  # fmt: skip
    found = Cache(folder, ["features"]).all("features")
    return Labelled(found, source.labels, list(source.class_names), origin, source.families())


def split(side: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """Training and test samples of a set that has no test images: `TEST_SHARE` of each class, at least one, by the seed.

    Images of one group (caption, inversion) stay together.

    Raises:
        UserError: a class has a single sample.
    """
    test: list[int] = []
    for label in np.unique(side.labels):
        rows = np.flatnonzero(side.labels == label)
        if len(rows) < 2:
            raise UserError(f"class {side.class_names[label]!r} has a single image; a probe needs one more to test on.")
        order = np.random.default_rng(derive_seed(seed, int(label))).permutation(rows)
        test += divide(order, side.families, max(1, round(TEST_SHARE * len(rows))))[0].tolist()
    chosen = np.zeros(len(side.labels), bool)
    chosen[test] = True
    how = f"of each class by seed {seed}"
    return (
        side.part(np.flatnonzero(~chosen), images=int((~chosen).sum()), split=f"{1 - TEST_SHARE:.0%} {how}"),
        side.part(np.flatnonzero(chosen), images=int(chosen.sum()), split=f"{TEST_SHARE:.0%} {how}"),
    )


def align(train: Labelled, test: Labelled) -> Labelled:
    """The test samples with the class numbers of the training samples.

    Raises:
        UserError: the test set has a class that training images lack.
    """
    if unknown := [name for name in test.class_names if name not in train.class_names]:
        raise UserError(
            f"the test images have a class {unknown[0]!r} that the training images lack ({', '.join(train.class_names[:5])}, "
            "…); give both the same classes."
        )
    number = np.array([train.class_names.index(name) for name in test.class_names], np.int64)
    return replace(test, labels=number[test.labels], class_names=train.class_names)


def zero_shot_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    language: Language,
    templates: Sequence[str],
) -> float:
    """Classification by the class whose captions are nearest (CLIP, arXiv 2103.00020, section 3.1.4); no training.

    A class is the normalised mean of its normalised captions, one a template.

    Args:
        features: float32 [N, D], of images.
        labels: int64 [N].
        class_names: what goes into the templates; `_` is read as a space.
        language: of the encoder.
        templates: sentences with {} once.

    Returns:
        The share of images whose class is nearest by cosine, in [0, 1].

    Raises:
        UserError: no template, or one without a place for the class.
    """
    if not templates or any(template.count("{}") != 1 for template in templates):
        raise UserError("zero-shot templates must hold {} once each, where the name of the class goes.")
    names = [name.replace("_", " ") for name in class_names]
    with torch.inference_mode():
        captions = [template.replace("{}", name) for name in names for template in templates]
        parts = [language.embed_texts(captions[i : i + CAPTIONS]) for i in range(0, len(captions), CAPTIONS)]
        texts = torch.cat(parts)
        classes = F.normalize(texts.float().cpu(), dim=1).unflatten(0, (len(names), len(templates))).mean(1)
        images = language.embed_features(torch.from_numpy(features)).float().cpu()
        guess = (F.normalize(images, dim=1) @ F.normalize(classes, dim=1).T).argmax(1)
    return float((guess == torch.from_numpy(labels)).double().mean())


def probe(
    train: Labelled,
    test: Labelled,
    settings: ProbeSettings,
    *,
    language: Language | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """The figures of one set.

    Args:
        train, test: its two sides, see `align`.
        settings: which probes, and how.
        language: of the extractor, if it has one.
        device: where linear and k-NN probes compute.

    Returns:
        JSON: `metrics` (accuracies in [0, 1]), `deviations` (half the 95 % interval of `few_shot`), `unavailable` (probes
        that cannot be, and why), `linear` (the rate that was chosen, and the accuracy at each), `train`, `test`, `classes`.

    Raises:
        UserError: a probe that was asked for cannot be, or nothing can.
    """
    found: dict[str, Any] = {"metrics": {}, "deviations": {}, "unavailable": {}}
    metrics = found["metrics"]
    chosen = settings.probes or PROBES
    x, x_test = (torch.from_numpy(side.features).to(device) for side in (train, test))
    y, y_test = (torch.from_numpy(side.labels).to(device) for side in (train, test))
    if "linear" in chosen:
        fitted = linear_probe(
            x,
            y,
            x_test,
            y_test,
            learning_rates=settings.learning_rates,
            epochs=settings.epochs,
            batch_norm=settings.batch_norm,
            seed=settings.seed,
            device=device,
        )
        metrics["linear"] = fitted.accuracy
        by_rate = {f"{rate:g}": accuracy for rate, accuracy in fitted.by_rate.items()}
        found["linear"] = {"learning_rate": fitted.learning_rate, "by_rate": by_rate}
    if "knn" in chosen:
        metrics["knn"] = knn_accuracy(x, y, x_test, y_test, k=settings.neighbors)
    if "few_shot" in chosen:
        single = np.unique(test.families, return_index=True)[1]  # shots and queries are of different families
        try:
            episodes = {k: getattr(settings, k) for k in ("ways", "shots", "queries", "episodes", "seed")}
            metrics["few_shot"], found["deviations"]["few_shot"] = few_shot_accuracy(
                test.features[single], test.labels[single], **episodes
            )
        except UserError as e:
            _lacks(found, "few_shot", str(e), settings)
    if "zero_shot" in chosen:
        if language is None:
            _lacks(found, "zero_shot", "zero-shot needs the pooled features of an encoder that has a caption encoder in its "
                   "folder `language`: one of rcg-train-encoder --method clip or stablerep+.", settings)  # fmt: skip
        else:
            metrics["zero_shot"] = zero_shot_accuracy(
                test.features, test.labels, train.class_names, language, settings.templates
            )
    return found | {"train": train.origin, "test": test.origin, "classes": train.class_names}


def _lacks(found: dict[str, Any], name: ProbeName, reason: str, settings: ProbeSettings) -> None:
    """Note that a probe cannot be; refuse if it was asked for by name."""
    if settings.probes is not None:
        raise UserError(reason)
    found["unavailable"][name] = reason


def probe_sets(
    extractor: FeatureExtractor,
    sets: Sequence[str],
    tests: Sequence[str] = (),
    settings: ProbeSettings | None = None,
    *,
    language: Language | None = None,
    image_size: int | None = None,
    class_names: Sequence[str] | None = None,
    root: Path | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    progress: bool = True,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Probe an extractor on one set of labelled images or several (transfer).

    Args:
        extractor: whose features.
        sets: training images: sources with labels. Without `tests`, a folder with `train` and `test` (or `val`) in it has
            both, and of any other set a part is kept for testing, see `split`.
        tests: test images, one for each of `sets`.
        settings: which probes, and how.
        language: of the extractor, for zero-shot.
        image_size, root, device, precision, progress: see `cached_features`.
        processes: this one and the others, which share out the features; the first probes, and all get what it finds.
        class_names: for zero-shot, in place of those of a single set, in their order.

    Returns:
        JSON: `sets`, what `probe` gives for each by its name; `metrics`, means over the sets of what all have;
        `extractor` and `settings`.

    Raises:
        UserError: sets that cannot be used or compared.
    """
    settings, processes = settings or ProbeSettings(), processes or Processes()
    if tests and len(tests) != len(sets):
        raise UserError(f"{len(sets)} sets to probe need as many of test images, not {len(tests)}; give one for each.")
    if class_names is not None and len(sets) > 1:
        raise UserError("names of classes are those of a single set; probe the sets one by one.")
    pairs = [(s, t) for s, t in zip(sets, tests, strict=True)] if tests else [halves_of(s) or (s, None) for s in sets]
    opened = [(open_labelled(s), None if t is None else open_labelled(t)) for s, t in pairs]
    for (train, test), (source, other) in zip(pairs, opened, strict=True):
        if other is not None and source.fingerprint == other.fingerprint:
            raise UserError(f"{train} and {test} are the same images; test on others.")
    names = _names([str(s) for s in sets])

    def features(source: ImageSource) -> Labelled:
        return cached_features(source, extractor, size=image_size, root=root, device=device, precision=precision,
                               progress=progress, processes=processes)  # fmt: skip

    def figures(name: str, whole: Labelled, other: Labelled | None) -> dict[str, Any]:
        train, test = split(whole, settings.seed) if other is None else (whole, align(whole, other))
        if class_names is not None:
            if len(class_names) != len(train.class_names):
                raise UserError(
                    f"{len(class_names)} names of classes are given, but {name} has {len(train.class_names)} classes."
                )
            train = replace(train, class_names=list(class_names))
        return probe(train, test, settings, language=language, device=device)

    found: dict[str, dict[str, Any]] = {}
    for name, (source, other) in zip(names, opened, strict=True):
        whole, rest = features(source), None if other is None else features(other)
        found[name] = _by_the_first(processes, partial(figures, name, whole, rest))
    shared = [k for k in PROBES if all(k in one["metrics"] for one in found.values())]
    if not shared:
        reasons = next(iter(found.values()))["unavailable"].values()
        raise UserError(f"none of the probes can be made: {' '.join(reasons)}")
    return {
        "metrics": {k: float(np.mean([one["metrics"][k] for one in found.values()])) for k in shared},
        "sets": found,
        "extractor": {
            "name": extractor.name,
            "weights": extractor.weights_hash,
            "resize": extractor.resize,
            "dimensions": extractor.dim,
            "precision": precision,
        },
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(settings).items()},
    }


def _by_the_first(processes: Processes, work: Callable[[], T]) -> T:
    """What `work` gives in the first process, for all of them; a mistake that it finds is everybody's, too."""
    made: T | UserError | None = None
    if processes.rank == 0:
        try:
            made = work()
        except UserError as e:
            made = e
    found: Any = processes.gather(made)[0]
    if isinstance(found, UserError):
        raise found
    return cast(T, found)


def _names(specs: Sequence[str]) -> list[str]:
    """The last parts of paths; the whole of those that would be equal."""
    short = [Path(spec).name or spec for spec in specs]
    return [s if short.count(s) == 1 else spec for s, spec in zip(short, specs, strict=True)]
