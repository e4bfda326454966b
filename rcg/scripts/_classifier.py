"""Flags of `rcg-eval --classifier`, and the call: classifiers trained on real, generated or mixed images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from rcg.core.errors import UserError
from rcg.core.parts import Share
from rcg.core.schema import OutFolder, Positive, PositiveShare, Size, flag_of
from rcg.scripts._command import Settings, flags

if TYPE_CHECKING:
    from rcg.eval.features import FeatureExtractor
    from rcg.eval.usefulness import Amount, Sets, Study
    from rcg.scripts.eval import EvalConfig

_USED = {
    "generated", "held_out", "train_data", "extractor", "extractor_weights", "out", "feature_sample", "image_size", "resize",
    "seed", "precision", "device", "classifier", "classifier_settings",
}  # fmt: skip
"""Flags of rcg-eval that a study of classifiers heeds."""
_OF_FEATURES = ("extractor", "extractor_weights", "feature_sample", "precision")
"""Those of them that only coverage and membership heed."""


@dataclass
class ClassifierSettings(Settings):
    """What classifiers are trained on, and how. --train-data are the real images, --held-out the real test images."""

    train_on: tuple[Literal["real", "generated", "mixed"], ...] = ()
    """Sets to train on, each for itself: real (--train-data), generated (--generated, several folders pooled), mixed (both).
    Default: all that are given."""
    fractions: tuple[PositiveShare, ...] = (1.0,)
    """A curve over the size of the data: shares of the real images of each class (of the generated ones, without real ones)."""
    shots: tuple[Size, ...] = ()
    """A few-shot curve instead: numbers of images of each class."""
    times: tuple[Positive, ...] = ()
    """A curve over generated images: as many as real ones, so many times. Default: all."""
    classifier_seeds: Size = 3
    """Trainings of each set and amount, from --seed on; mean and standard deviation are reported. The seed also chooses the
    images of a fraction."""
    classifier_steps: Size = 2000
    """Steps of each training, for sets of any size."""
    classifier_batch_size: Size = 128
    """Images in a step."""
    classifier_lr: Positive = 0.1
    """Highest learning rate."""
    classifier_kwargs: str = "{}"
    """Overrides for timm's model as JSON, such as '{"channels": [32, 64, 128, 256]}'."""
    classifier_stem: Literal["auto", "timm", "half", "small"] = "auto"
    """How a ResNet begins: small is 3×3 with stride 1, half 3×3 with stride 2, both not pooled, timm as made for 224 px; auto
    is small below 64 px."""
    classifier_held_out: PositiveShare = 0.1
    """Share of the training images (of a mixed set: of its real ones) by which the best state is chosen."""
    classifier_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the classifier; auto is bf16 where the hardware multiplies it faster."""
    classifier_out: OutFolder | None = None
    """Folder for the classifier of the first seed, for rcg-synthesize --hard; with one set and one amount."""
    class_coverage: bool = False
    """Also the share of test images whose nearest generated image, in the --extractor's features, is of their class."""
    membership: bool = False
    """Also how well the distance to the nearest generated image tells --train-data from --held-out images."""


def check(config: EvalConfig) -> None:
    """Raise `UserError` for flags that do not go together, before anything is loaded."""
    chosen = config.classifier_settings
    if config.classifier is None:
        if given := chosen.given():
            raise UserError(f"{flag_of(given[0])} is for --classifier NAME; give it, too.")
        return
    for field in fields(config):
        if field.name in _USED:
            continue
        value, default = getattr(config, field.name), field.default
        if field.name in ("sampling", "report_settings", "probing", "spreading"):
            value, default = list(value.given()), []
        if value != default:
            name = value[0] if isinstance(value, list) else field.name
            raise UserError(f"{flag_of(name)} has no effect with --classifier; leave it out.")
    if config.held_out is None:
        raise UserError("--classifier needs --held-out DIR, the real images that it is tested on.")
    if config.is_pipeline:
        raise UserError(
            f"{config.generated[0]} is a pipeline, but --classifier trains on images; draw them with rcg-synthesize first."
        )
    if chosen.shots and chosen.fractions != (1.0,):
        raise UserError("--shots and --fractions exclude each other; choose one.")
    if not chosen.shots and not chosen.fractions:
        raise UserError("--fractions is an empty list; give one share or more.")
    if chosen.times and (config.train_data is None or not config.generated):
        raise UserError("--times counts generated images in multiples of real ones; give --train-data and --generated.")
    if chosen.class_coverage or chosen.membership:
        if not config.generated:
            raise UserError("--class-coverage and --membership are about generated images; give --generated.")
        if config.feature_sample == 0:
            raise UserError(
                "--class-coverage and --membership look at single images; --feature-sample must be above 0."
            )
    elif given := [name for name in _OF_FEATURES if getattr(config, name) != getattr(type(config), name)]:
        raise UserError(f"{flag_of(given[0])} is for --class-coverage and --membership; add one or leave it out.")
    if chosen.membership and config.train_data is None:
        raise UserError("--membership needs --train-data, the images that the generator was trained on.")
    arch_kwargs(chosen.classifier_kwargs)


def arch_kwargs(text: str) -> dict[str, Any]:
    """The overrides of an architecture; `UserError` for what is no JSON object."""
    import json

    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(
            f"--classifier-kwargs {text!r} is no JSON object, such as '{{\"channels\": [32, 64, 128, 256]}}'."
        )
    return value


def _amounts(chosen: ClassifierSettings) -> list[Amount]:
    from rcg.eval.usefulness import Amount

    bases = [Amount(shots=k) for k in chosen.shots] or [Amount(share) for share in chosen.fractions]
    return [Amount(b.share, b.shots, times) for b in bases for times in (chosen.times or (None,))]


def _sets(config: EvalConfig) -> Sets:
    from rcg.eval.labelled import LabelledSet
    from rcg.eval.usefulness import Sets

    assert config.held_out is not None
    frame: Any = {"image_size": config.image_size, "resize": config.resize}
    real = None if config.train_data is None else LabelledSet(config.train_data, "training", **frame)
    of_real: Any = {} if real is None else {"class_names": real.class_names, "numbered": real.numbered}
    test = LabelledSet(config.held_out, "held-out", **of_real, **frame)
    frame |= {"class_names": test.class_names, "numbered": test.numbered}
    generated = [LabelledSet(each, "generated", **frame) for each in config.generated]
    for note in dict.fromkeys(note for each in [real, test, *generated] if each for note in each.images.notes):
        print(f"rcg-eval: {note}", file=sys.stderr)
    for each in [test, *generated] if real is None else [real, *generated]:
        if each.side != test.side:
            raise UserError(
                f"{each.spec} has images of {each.side} px, but {test.spec} of {test.side}; give --image-size to frame all alike."
            )
    if real is not None and real.fingerprint == test.fingerprint:
        raise UserError("--train-data and --held-out are the same images; test on others.")
    return Sets(test, real, generated)


def run(config: EvalConfig, extractor: FeatureExtractor | str | None, command: Sequence[str]) -> None:
    """Train, test, print and write; see `rcg.eval.usefulness.Study`.

    Args:
        config: checked.
        extractor: for coverage and membership, or its name; None without these.
        command: its words.
    """

    from rcg.core.hardware import pick_bf16, pick_device
    from rcg.eval.classifier import SMALL, Recipe, is_resnet
    from rcg.eval.usefulness import KINDS, Study, format_summary

    chosen = config.classifier_settings
    assert config.classifier is not None
    if Share.from_environment().world > 1:
        raise UserError("--classifier runs in one process; start it without torchrun.")
    device = pick_device(config.device)
    sets = _sets(config)
    overrides = arch_kwargs(chosen.classifier_kwargs)
    stem = chosen.classifier_stem
    if stem == "auto":
        stem = "small" if sets.test.side < SMALL and is_resnet(config.classifier) else "timm"
    recipe = Recipe(
        arch=config.classifier,
        arch_kwargs=overrides or None,
        stem=stem,
        steps=chosen.classifier_steps,
        batch_size=chosen.classifier_batch_size,
        lr=chosen.classifier_lr,
        held_out=chosen.classifier_held_out,
    )
    bf16 = pick_bf16(chosen.classifier_precision, device)
    study = Study(sets, recipe, device=device, bf16=bf16, out=config.out)
    able = {"real": sets.real is not None, "generated": bool(sets.generated)}
    kinds = chosen.train_on or tuple(k for k in KINDS if able.get(k, all(able.values())))
    extra: dict[str, Any] = {"command": list(command), "config": flags(config)}
    if extractor is not None:
        extra |= _by_features(config, study, extractor)
    seeds = range(config.seed, config.seed + chosen.classifier_seeds)
    report = study.run(kinds, _amounts(chosen), seeds, extra, chosen.classifier_out)
    print(format_summary(report["summary"]))
    for name in ("class_coverage", "membership"):
        if name in extra:
            print(f"{name}: {extra[name]}")
    if config.out is not None:
        print(f"Written to {config.out}.")
    if chosen.classifier_out is not None:
        print(f"The classifier is in {chosen.classifier_out}.")


def _by_features(config: EvalConfig, study: Study, extractor: FeatureExtractor | str) -> dict[str, Any]:
    """Coverage and membership, unless --out holds them already."""
    from rcg.core.schema import read_json
    from rcg.eval.extractors import open_extractor
    from rcg.eval.usefulness import membership, nearest_generated

    chosen = config.classifier_settings
    opened = open_extractor(extractor, config.extractor_weights) if isinstance(extractor, str) else extractor
    about: dict[str, Any] = {"name": opened.name, "weights": opened.weights_hash, "precision": config.precision}
    about |= {"most": config.feature_sample, "seed": config.seed}
    wanted = [name for name in ("class_coverage", "membership") if getattr(chosen, name)]
    held = read_json(config.out) if config.out is not None and config.out.is_file() else {}
    if (
        held.get("settings") == study.settings
        and held.get("extractor") == about
        and all(name in held for name in wanted)
    ):
        return {name: held[name] for name in ("extractor", *wanted)}
    print(f"rcg-eval: looking for nearest generated images in the features of {opened.name}.", file=sys.stderr)
    found = nearest_generated(
        study.sets,
        opened,
        most=config.feature_sample,
        seed=config.seed,
        device=study.device,
        precision=config.precision,
    )
    extra: dict[str, Any] = {"extractor": about}
    if chosen.class_coverage:
        extra["class_coverage"] = {"share": found.class_coverage(), "images": len(found.test_truth)}
    if chosen.membership:
        members, others = found.member_distances, found.test_distances
        extra["membership"] = {**membership(members, others), "members": len(members), "others": len(others)}
    return extra
