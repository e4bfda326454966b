"""What generated images are worth to a classifier, and what they give away: `rcg-eval --classifier`.

A classifier is trained by one recipe on real images, on generated ones, or on both, with several seeds; its accuracy is
measured on real test images. Each training is written down when it is done and never done again. Beside that: how much of
the real test set generated images of the right class lie near to, and whether they betray what the generator learnt from.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from tqdm import tqdm

from rcg.core.components import load_model
from rcg.core.errors import UserError
from rcg.core.files import export_files, model_hash, write_json
from rcg.core.rng import derive_seed
from rcg.core.schema import read_json
from rcg.eval.classifier import ImageClassifier, Recipe, accuracy, train_classifier
from rcg.eval.features import FeatureExtractor, run_extractor
from rcg.eval.labelled import LabelledSet, joined, part_of
from rcg.eval.nearest import Nearest
from rcg.eval.reports import FORMAT, markdown_table, versions

Kind = Literal["real", "generated", "mixed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LEAST = 2
"""Images of each class at least: one to learn from, one to choose a state by."""
CONFIG = "config.json"
_MEMBERS = 12


@dataclass(frozen=True)
class Amount:
    """How many images a classifier is given.

    Attributes:
        share: of the real images of each class, in (0, 1].
        shots: instead of that, so many of each class.
        times: generated images, as a multiple of those real ones; None: all that there are.
    """

    share: float = 1.0
    shots: int | None = None
    times: float | None = None

    def counts(self, labels: np.ndarray, classes: int) -> list[int]:
        """Images of each class out of `labels`.

        Raises:
            UserError: fewer than two, or more than there are.
        """
        there = np.bincount(labels, minlength=classes).tolist()
        wanted = [self.shots if self.shots is not None else max(LEAST, round(self.share * n)) for n in there]
        for i, (count, most) in enumerate(zip(wanted, there, strict=True)):
            if not LEAST <= count <= most:
                raise UserError(
                    f"{count} images of each class are asked for, but class number {i} has {most}, and at least {LEAST} are "
                    "needed; choose other amounts."
                )
        return wanted


@dataclass(frozen=True)
class Sets:
    """The images of a study.

    Attributes:
        test: real, not trained on.
        real: real training images.
        generated: generated training images, pooled.
    """

    test: LabelledSet
    real: LabelledSet | None = None
    generated: Sequence[LabelledSet] = ()

    def fingerprints(self) -> dict[str, Any]:
        """By which an evaluation that goes on knows its sets."""
        return {
            "test": self.test.fingerprint,
            "real": None if self.real is None else self.real.fingerprint,
            "generated": [each.fingerprint for each in self.generated],
        }


class Study:
    """Classifiers on several sets, in several amounts, with several seeds.

    Args:
        sets: the images.
        recipe: of each training.
        device, bf16: where and how.
        out: JSON file; trainings that it holds are not done again, and each new one is put there at once.
        progress: show bars.

    Raises:
        UserError: no training images, or `out` holds something else or trainings by another recipe or on other images.
    """

    def __init__(
        self,
        sets: Sets,
        recipe: Recipe,
        *,
        device: torch.device | str = "cpu",
        bf16: bool = False,
        out: Path | None = None,
        progress: bool = True,
    ) -> None:
        if sets.real is None and not sets.generated:
            raise UserError("there is nothing to train on; give --train-data, --generated, or both.")
        self.sets, self.recipe, self.device, self.bf16 = sets, recipe, torch.device(device), bf16
        self.out, self.progress = out, progress
        settings = {
            "recipe": asdict(recipe),
            "image_size": sets.test.side,
            "classes": sets.test.class_names,
            "precision": "bf16" if bf16 else "fp32",
            "sets": sets.fingerprints(),
        }
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.runs: list[dict[str, Any]] = self._held()

    def _held(self) -> list[dict[str, Any]]:
        return [] if self.out is None or not self.out.exists() else list(self._read(self.out)["runs"])

    def _read(self, file: Path) -> dict[str, Any]:
        held: dict[str, Any] = read_json(file, way_out="delete it, or choose another file")
        if held.get("kind") != "classifier":
            raise UserError(f"--out {file} holds something else than trainings of classifiers; choose another file.")
        if differing := [k for k in self.settings if held.get("settings", {}).get(k) != self.settings[k]]:
            raise UserError(f"--out {file} holds trainings with other {differing[0]}; choose another file.")
        return held

    def _parts(self, kind: Kind, amount: Amount, seed: int) -> tuple[list[tuple[LabelledSet, np.ndarray]], int]:
        """Which images are trained on, the real ones first, and how many of them are real."""
        classes = len(self.sets.test.class_names)
        base = self.sets.real
        parts: list[tuple[LabelledSet, np.ndarray]] = []
        counts: list[int] | None = None
        if base is not None:
            counts = amount.counts(base.labels, classes)
            if kind != "generated":
                parts.append((base, part_of(base.labels, counts, seed)))
        real = sum(len(rows) for _, rows in parts)
        if kind != "real":
            labels = np.concatenate([each.labels for each in self.sets.generated])
            if base is None:
                chosen = part_of(labels, amount.counts(labels, classes), seed)
            elif amount.times is None:
                chosen = np.arange(len(labels))
            else:
                assert counts is not None
                chosen = part_of(labels, [max(LEAST, round(amount.times * n)) for n in counts], seed)
            begin = 0
            for each in self.sets.generated:
                mine = chosen[(chosen >= begin) & (chosen < begin + len(each))] - begin
                parts.append((each, mine))
                begin += len(each)
        return parts, real

    def train(self, kind: Kind, amount: Amount, seed: int, save: Path | None = None) -> dict[str, Any]:
        """One training, unless it has been done: what it was on, and the accuracy on the test images.

        Args:
            kind: what is trained on. The images by which a state is chosen are a share of the set itself; of a mixed one, of
                its real images.
            amount: how many.
            seed: of the part of the set, the weights, the order, the views.
            save: also put the classifier into this folder, in the place of another; train it if it is not there.
        """
        parts, real = self._parts(kind, amount, seed)
        digest = hashlib.sha256(f"{kind} {seed}".encode())
        for each, rows in parts:
            digest.update(each.fingerprint.encode() + rows.astype("<i8").tobytes())
        key = digest.hexdigest()[:16]
        done = next((run for run in self.runs if run["key"] == key), None)
        if done is not None and (save is None or _keeps(save, done)):
            return self._named(done, kind, amount)
        pictures = joined(parts)
        able = np.arange(len(pictures)) < real if kind == "mixed" else None
        for each, _ in [*parts, (self.sets.test, None)]:
            each.load(self.progress)
        with tqdm(
            total=self.recipe.steps,
            desc=_title(kind, amount, seed),
            unit=" steps",
            leave=False,
            disable=not self.progress,
        ) as bar:
            made = train_classifier(
                pictures,
                self.sets.test.class_names,
                self.sets.test.side,
                self.recipe,
                seed,
                validate_on=able,
                device=self.device,
                bf16=self.bf16,
                on_step=bar.update,
            )
        share = accuracy(made.model, self.sets.test.pictures(), device=self.device, bf16=self.bf16)
        run = {
            "key": key,
            "seed": seed,
            "real": real,
            "generated": len(pictures) - real,
            "held_out": made.validated_on,
            "validation": made.validation,
            "best_step": made.best_step,
            "accuracy": share,
        }
        if save is not None:
            run["classifier"] = model_hash(made.model.cpu())
            export_files(save, made.model.save_pretrained)
        if done is None:
            self.runs.append(run)
        else:
            done.update(run)
        return self._named(run, kind, amount)

    def _named(self, run: dict[str, Any], kind: Kind, amount: Amount) -> dict[str, Any]:
        return {**run, "set": kind, **asdict(amount)}

    def run(
        self,
        kinds: Sequence[Kind],
        amounts: Sequence[Amount],
        seeds: Sequence[int],
        extra: dict[str, Any] | None = None,
        save: Path | None = None,
        on_run: Callable[[dict[str, Any]], None] = lambda run: None,
    ) -> dict[str, Any]:
        """All trainings, seed by seed, and the report, which is written after each of them.

        Args:
            kinds: sets to train on.
            amounts: of each.
            seeds: of each amount.
            extra: further entries of the report.
            save: folder for the classifier of the first seed; there must be one set and one amount.
            on_run: called with each training that is done.

        Raises:
            UserError: sets that were not given, amounts that are not there, or a model that is no classifier in `save`.
        """
        missing = [
            kind
            for kind in kinds
            if (kind != "generated" and self.sets.real is None) or (kind != "real" and not self.sets.generated)
        ]
        if missing:
            flag = "--train-data" if self.sets.real is None else "--generated"
            raise UserError(
                f"a classifier on {missing[0]} images needs {flag}; give that, too, or leave {missing[0]} out."
            )
        cells = list(self._cells(kinds, amounts))
        if save is not None and len(cells) > 1:
            raise UserError("--classifier-out keeps one classifier; ask for one set and one amount.")
        there = {} if save is None or not (save / CONFIG).is_file() else read_json(save / CONFIG)
        if there and there.get("_class_name") != ImageClassifier.__name__:
            raise UserError(f"--classifier-out {save} holds another model; choose another folder.")
        for kind, amount in cells:  # what cannot be is said before the first training
            self._parts(kind, amount, seeds[0])
        found: list[dict[str, Any]] = []
        for seed in seeds:
            for kind, amount in cells:
                found.append(self.train(kind, amount, seed, save if seed == seeds[0] else None))
                self._write(found, extra)
                on_run(found[-1])
        return self._write(found, extra)

    def _cells(self, kinds: Sequence[Kind], amounts: Sequence[Amount]) -> Iterator[tuple[Kind, Amount]]:
        """Every set in every amount, each once: real images alone know no multiple of generated ones."""
        seen: set[tuple[Kind, Amount]] = set()
        for kind in kinds:
            for amount in amounts:
                plain = Amount(amount.share, amount.shots) if kind == "real" else amount
                if kind == "generated" and self.sets.real is not None and amount.times is None:
                    plain = Amount()
                if (kind, plain) not in seen:
                    seen.add((kind, plain))
                    yield kind, plain

    def _write(self, found: Sequence[dict[str, Any]], extra: dict[str, Any] | None) -> dict[str, Any]:
        held = {} if self.out is None or not self.out.exists() else self._read(self.out)
        if extra and extra.get("extractor", held.get("extractor")) != held.get("extractor"):
            held = {k: v for k, v in held.items() if k == "runs"}  # what other features told
        keys = {run["key"] for run in self.runs}
        self.runs += [run for run in held.get("runs", []) if run["key"] not in keys]  # another process's, since then
        report = held | self.report(found) | (extra or {})
        if self.out is not None:
            write_json(self.out, report)
        return report

    def report(self, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Contents of the JSON file: `runs` are all trainings of this recipe, `summary` those asked for, over seeds."""
        summary = summarise(found)
        return {
            "format": FORMAT,
            "kind": "classifier",
            "metrics": {row["name"]: row["accuracy"] for row in summary},
            "deviations": {row["name"]: row["deviation"] for row in summary if row["deviation"] is not None},
            "summary": summary,
            "runs": self.runs,
            "settings": self.settings,
            "counts": {
                "test": len(self.sets.test),
                "real": None if self.sets.real is None else len(self.sets.real),
                "generated": sum(len(each) for each in self.sets.generated),
            },
            "sources": {
                "test": self.sets.test.spec,
                "real": None if self.sets.real is None else self.sets.real.spec,
                "generated": [each.spec for each in self.sets.generated],
            },
            "versions": versions(),
        }


def _keeps(folder: Path, run: dict[str, Any]) -> bool:
    """Whether the classifier in a folder is that of a training."""
    try:
        return (folder / CONFIG).is_file() and model_hash(load_model(ImageClassifier, folder)) == run.get("classifier")
    except UserError:  # a damaged one
        return False


def _title(kind: Kind, amount: Amount, seed: int) -> str:
    return f"{_name(kind, asdict(amount))}, seed {seed}"


def _name(kind: str, amount: dict[str, Any]) -> str:
    """`accuracy-mixed-1%-2x` and the like."""
    parts = ["accuracy", kind]
    if amount["shots"] is not None:
        parts.append(f"{amount['shots']}shot")
    elif amount["share"] != 1:
        parts.append(f"{100 * amount['share']:g}%")
    if amount["times"] is not None:
        parts.append(f"{amount['times']:g}x")
    return "-".join(parts)


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each set and amount: mean accuracy over the seeds and the sample's standard deviation (n - 1)."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(_name(run["set"], run), []).append(run)
    rows = []
    for name, some in groups.items():
        values = [run["accuracy"] for run in some]
        first = {k: some[0][k] for k in ("set", "share", "shots", "times", "real", "generated")}
        spread = statistics.stdev(values) if len(values) > 1 else None
        rows.append(
            {"name": name, **first, "seeds": len(values), "accuracy": statistics.fmean(values), "deviation": spread}
        )
    return rows


def format_summary(summary: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of it, accuracies in per cent."""
    rows = [["trained on", "real", "generated", "accuracy %", "seeds"]]
    for row in summary:
        spread = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.2f}"
        name, accuracy = row["name"].removeprefix("accuracy-"), f"{100 * row['accuracy']:.2f}{spread}"
        rows.append([name, str(row["real"]), str(row["generated"]), accuracy, str(row["seeds"])])
    return markdown_table(rows)


# ---------------------------------------------------------------------- by features


def _features(
    extractor: FeatureExtractor, part: LabelledSet, rows: np.ndarray, device: torch.device, precision: str, label: str
) -> Iterator[torch.Tensor]:
    batches = (part.pixels(rows[i : i + 64]) for i in range(0, len(rows), 64))
    with tqdm(total=len(rows), desc=label, unit=" images") as bar:
        for images, made in run_extractor(extractor, batches, device=device, precision=precision):
            bar.update(len(images))
            yield made.features


@dataclass(frozen=True)
class NearestGenerated:
    """What lies nearest to real images among the generated ones.

    Attributes:
        test_distances, test_labels: of each test image looked at, the distance to its nearest and that one's class.
        test_truth: the test images' own classes.
        member_distances: the same distances of training images.
    """

    test_distances: np.ndarray
    test_labels: np.ndarray
    test_truth: np.ndarray
    member_distances: np.ndarray

    def class_coverage(self) -> float:
        """The share of real test images whose nearest generated neighbour is of their class."""
        return float((self.test_labels == self.test_truth).mean())


def nearest_generated(
    sets: Sets,
    extractor: FeatureExtractor,
    *,
    most: int = 10_000,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> NearestGenerated:
    """Look for the nearest generated image of each real one, in an extractor's features, by Euclidean distance.

    Args:
        sets: with generated images; training images are looked at where there are any.
        extractor: whose features.
        most: images of each real side that are looked at, drawn by the seed.
        seed: of that.
        device, precision: of the extractor.

    Raises:
        UserError: there are no generated images.
    """
    if not sets.generated:
        raise UserError("--class-coverage and --membership are about generated images; give --generated.")
    device = torch.device(device)

    def some(part: LabelledSet, stream: int) -> np.ndarray:
        order = np.random.default_rng(derive_seed(seed, _MEMBERS, stream)).permutation(len(part))
        return np.sort(order[:most])

    test_rows = some(sets.test, 0)
    queries = [*_features(extractor, sets.test, test_rows, device, precision, "test images")]
    tests = sum(map(len, queries))
    if sets.real is not None:
        queries += _features(extractor, sets.real, some(sets.real, 1), device, precision, "training images")
    nearest = Nearest(torch.cat(queries).cpu().numpy())
    start = 0
    for each in sets.generated:
        for rows in _features(extractor, each, np.arange(len(each)), device, precision, "generated images"):
            nearest.add(start, rows)
            start += len(rows)
    nearest.flush()
    found = nearest.neighbors()
    labels = np.concatenate([each.labels for each in sets.generated])
    distances, numbers = found.distances[:, 0], found.numbers[:, 0]
    return NearestGenerated(distances[:tests], labels[numbers[:tests]], sets.test.labels[test_rows], distances[tests:])


def membership(members: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """How well the distance to the nearest generated image tells training images from others that were not trained on.

    The attack says "trained on" where the distance is small (as in Chen et al. 2020, GAN-Leaks, arXiv 1909.03935, without
    calibration).

    Args:
        members: distances [N] of training images.
        others: distances [M] of images of the same kind that were not trained on.

    Returns:
        `auc`: chance that a member lies nearer than another image, ties count half (0.5: nothing is given away), with its
        standard error `auc_error` (Hanley and McNeil 1982); `tpr_at_1_percent`: share of members found where 1 % of the
        others are taken for members (0.01: nothing; Carlini et al. 2022, arXiv 2112.03570).

    Raises:
        UserError: no distances on a side.
    """
    n, m = len(members), len(others)
    if not n or not m:
        raise UserError("--membership needs training images and others that were not trained on; give --train-data.")
    order = np.sort(others)
    below, upto = np.searchsorted(order, members, "left"), np.searchsorted(order, members, "right")
    auc = float(((m - upto) + 0.5 * (upto - below)).sum() / (n * m))
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    error = math.sqrt(max(0.0, auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (m - 1) * (q2 - auc**2)) / (n * m))
    threshold = order[int(0.01 * m)]
    return {"auc": auc, "auc_error": error, "tpr_at_1_percent": float((members < threshold).mean())}
