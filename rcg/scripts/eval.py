"""`rcg-eval`: score generated images, a pipeline or an RDM against real images, their statistics or representations; probe
features with labels; or train classifiers on sets, to see what these are worth."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from rcg.core.errors import UserError
from rcg.core.parts import Share
from rcg.core.schema import CountOrZero, NonNegative, OutFile, OutFolder, Range, Seed, Size, flag_of
from rcg.core.shipped import local_folder
from rcg.scripts import _classifier
from rcg.scripts._classifier import ClassifierSettings
from rcg.scripts._command import EngineSettings, SamplingSettings, Settings, flags, run_command
from rcg.scripts._probe import ProbeSettings, run_probe

if TYPE_CHECKING:
    from rcg.eval.evaluate import Evaluator, Examined
    from rcg.eval.features import FeatureExtractor
    from rcg.eval.images import PipelineImages
    from rcg.eval.sweeps import Setting, Sweep


_OF_IMAGES = (
    "generated", "reference", "held_out", "train_data", "neighbors", "report", "extractor", "extractor_weights", "make_stats", "limit", "image_size", "resize",
    "batch_size", "labels", "precision", "feature_sample",
)  # fmt: skip
"""Flags that an RDM has no use for."""
_NOT_OF_PROBES = (
    "generated", "reference", "metrics", "fid_infinity", "held_out", "train_data", "neighbors", "make_stats", "feature_sample",
    "batch_size", "limit", "resize", "num_images", "repeats", "labels", "report", "rdm", "cache",
)  # fmt: skip
"""Flags that a probe has no use for."""
SHOWN_BYTES = 1 << 28
"""Of a pipeline's images that are remembered for a page or a picture, which would otherwise draw them again."""


@dataclass
class ReportSettings(Settings):
    """What a report's page shows beside figures, samples, neighbours and the map."""

    sweep_guidance: tuple[NonNegative, ...] = ()
    """Of a pipeline: draw the --sweep-metric's curve over these guidance scales, such as 1 1.5 2 3."""
    sweep_temperature: tuple[NonNegative, ...] = ()
    """The same over temperatures."""
    sweep_steps: tuple[Size, ...] = ()
    """The same over numbers of steps."""
    sweep_rdm_steps: tuple[Size, ...] = ()
    """The same over the RDM's numbers of steps."""
    sweep_metric: str = "fid"
    """The metric of the sweeps: one that needs no training images."""
    sweep_images: Annotated[int, Range(2, 10**6)] = 500
    """Images drawn at every point of a sweep."""

    def sweeps(self) -> list[Sweep]:
        """Those that are asked for."""
        from rcg.eval.sweeps import Sweep

        asked: dict[Setting, tuple[float, ...]] = {
            "guidance_scale": self.sweep_guidance,
            "temperature": self.sweep_temperature,
            "num_inference_steps": self.sweep_steps,
            "rdm_num_inference_steps": self.sweep_rdm_steps,
        }
        return [Sweep(setting, tuple(sorted(set(values)))) for setting, values in asked.items() if values]


@dataclass
class EvalConfig:
    """What to compare, and how."""

    generated: tuple[str, ...] = ()
    """A folder of generated images (sub-folders too; sheets of samples are left out), shards of them, an .npz of them
    (arr_0), or the folder of a saved RCGPipeline (or its name in the box, rcg/cifar10). Several folders are repeats of one
    model: means and standard deviations are reported."""
    reference: str | None = None
    """A folder of real images, shards, a zip archive or a table of them, hf:OWNER/NAME:SPLIT, an .npz of them, or a .npz of their
    statistics (ours, pytorch-fid's, guided-diffusion's)."""
    metrics: tuple[str, ...] = ("fid", "isc", "kid", "prc", "dc")
    """Any of fid, sfid, fid_infinity, isc, kid, prc (precision, recall), dc (density, coverage), mind, cmmd, vendi, fld,
    copies, ct, separated by commas or spaces."""
    fid_infinity: bool = False
    """Extrapolate the Fréchet distance to infinitely many images, too: where there are few."""
    held_out: str | None = None
    """Real images that the model was not trained on, for fld, copies and ct; may be the --reference, where --train-data are
    given. Without these, --reference are the training images."""
    train_data: str | None = None
    """All images that the model was trained on: adds copies (the share of near-copies of them) and ct (the C_T test), both
    judged by --held-out."""
    neighbors: OutFile | None = None
    """Write a PNG here: the samples that are nearest to a training image, and others, beside their nearest training images."""
    extractor: str = "inception"
    """Whose features: inception, inception-768 (reported as fid-768), dinov2 (fdd), clip (for cmmd), encoder:DIR
    (encoder:rcg/cifar10), timm:NAME[:FILE]."""
    extractor_weights: Path | None = None
    """The extractor's weights file; without it, `inception` and timm's models download theirs."""
    out: OutFile | None = None
    """Write the figures here as JSON; they are printed in any case."""
    make_stats: OutFile | None = None
    """Write the statistics of the --reference images to this .npz, to be given as --reference later. Needs no --generated."""
    feature_sample: CountOrZero = 10_000
    """Images of each side whose features are kept (in --make-stats, too) for the metrics that look at single images."""
    batch_size: Size | None = None
    """Images decoded or drawn at once, and in one pass of the extractor on a GPU. Default: 16 on a CPU, 64 on a GPU."""
    limit: Annotated[int, Range(2, 10**12)] | None = None
    """At most so many images of each side, drawn by the seed."""
    image_size: Size | None = None
    """Resize and centre-crop all images to this many pixels first; needed where they differ in size."""
    resize: Literal["antialiased", "plain"] = "antialiased"
    """How --image-size is reached: bicubic with antialias, or without."""
    seed: Seed = 0
    """Of --limit's draw, the sample of features, KID's subsets, the Inception Score's splits, and the pipeline's images."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the extractor: bf16 is faster on some processors, and changes the features by 1 to 2 %."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the extractor and the pipeline run."""
    num_images: Annotated[int, Range(2, 10**12)] | None = None
    """Images to draw when --generated is a pipeline; representations with --rdm (default there: 5000)."""
    repeats: Annotated[int, Range(1, 1000)] = 1
    """Of a pipeline or an RDM: draw and score so many times, from one seed after the other."""
    labels: Literal["random", "balanced"] = "random"
    """Classes of a pipeline that has some: drawn at random, or one after the other."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """Of a pipeline. Default: its own."""
    report: OutFolder | None = None
    """Write a page about all of it into this folder (index.html, which works offline), and report.json: figures and how they
    came about, samples, nearest training images, a map; of a pipeline also sweeps, interpolations and reconstructions."""
    report_settings: ReportSettings = field(default_factory=ReportSettings)
    """Of the page."""
    rdm: str | None = None
    """The folder of a trained RDM, or of a pipeline that has one: scores representations without any image, against those in --cache."""
    cache: str | None = None
    """A cache with real representations of the RDM's encoder, of images that it was not trained on if there are such."""
    probing: ProbeSettings = field(default_factory=ProbeSettings)
    """Of features instead of images."""
    classifier: str | None = None
    """Instead of metrics: train classifiers of this architecture of timm, such as resnet18, on --train-data (real), --generated,
    or both, by one recipe, and test them on --held-out. Trainings that --out holds are not done again."""
    classifier_settings: ClassifierSettings = field(default_factory=ClassifierSettings)
    """Of --classifier."""
    spreading: EngineSettings = field(default_factory=EngineSettings)
    """Of metrics of images: who extracts features (and draws a pipeline's images). torchrun's processes share them out, too."""

    def validate(self) -> None:
        """Raise a UserError for what cannot be, before anything is loaded."""
        if self.probing.probe and self.classifier is not None:
            raise UserError("--probe and --classifier are two evaluations; leave one out.")
        self._check_engine()
        _classifier.check(self)
        if self.probing.probe:
            self._check_probe()
            return
        if self.classifier is not None:
            return
        if not self.generated and self.rdm is None and self.make_stats is None:
            raise UserError(
                "there is nothing to score; give --generated DIR (or --probe DIR, --rdm DIR, --make-stats FILE)."
            )
        if (self.rdm is None) != (self.cache is None):
            raise UserError("--rdm DIR and --cache DIR belong together; give both.")
        if self.rdm is not None:
            if Share.from_environment().world > 1:
                raise UserError("--rdm runs in one process; start it without torchrun.")
            about_images = {k: getattr(self, k) for k in _OF_IMAGES} | self.sampling.given()
            default = {f.name: f.default for f in fields(self)}
            given = [k for k, v in about_images.items() if not k.startswith("rdm_") and v != default.get(k)]
            if given:
                raise UserError(f"--rdm is scored without images; leave out {flag_of(given[0])}.")
        for place in self.generated:
            if (Path(place) / "training/config.yaml").is_file():
                raise UserError(
                    f"{place} holds a training run, not images; give images or a pipeline (rcg-assemble makes one)."
                )
        if self.is_pipeline:
            if len(self.generated) > 1:
                raise UserError("--generated may be one pipeline only; --repeats draws from it several times.")
            if self.num_images is None:
                raise UserError(f"{self.generated[0]} is a pipeline; say how many images to draw with --num-images N.")
            if not self.report_settings.sweep_guidance:
                self.sampling.check_guided()
            if self.limit is not None and self.limit < self.num_images:
                raise UserError(f"--limit {self.limit} would throw generated images away; lower --num-images instead.")
        elif self.rdm is None:
            given = ["num_images"] * (self.num_images is not None) + ["repeats"] * (self.repeats > 1)
            if given := given + ["labels"] * (self.labels != "random") + list(self.sampling.given()):
                raise UserError(
                    f"{flag_of(given[0])} is for a pipeline, but {' '.join(self.generated) or 'nothing'} has no "
                    "model_index.json; leave it out."
                )
        if self.resize != "antialiased" and self.image_size is None:
            raise UserError("--resize says how --image-size S is reached; give that, too, or leave it out.")
        if self.make_stats is not None:
            if self.make_stats.suffix != ".npz":
                raise UserError(f"--make-stats {self.make_stats}: give a name that ends in .npz.")
            if self.reference is None:
                raise UserError("--make-stats needs --reference DIR, the images to measure.")
        if self.train_data is not None and self.held_out is None:
            raise UserError("--train-data needs --held-out DIR, real images that were not trained on, to judge by.")
        if not self.generated and self.rdm is None:
            judging = ("train_data", "neighbors", "report", "held_out", "out", "metrics", "fid_infinity")
            if given := [name for name in judging if getattr(self, name) != getattr(EvalConfig, name)]:
                raise UserError(f"{flag_of(given[0])} needs --generated, the images to judge.")
        if self.neighbors is not None:
            if self.neighbors.suffix.lower() != ".png":
                raise UserError(f"--neighbors {self.neighbors}: give a name that ends in .png.")
            if self.held_out is None:
                raise UserError("--neighbors needs --train-data DIR and --held-out DIR.")
        self._check_report()

    def _check_engine(self) -> None:
        if self.spreading.engine == "local":
            return
        others = {"--probe": self.probing.probe, "--classifier": self.classifier, "--rdm": self.rdm}
        if given := [flag for flag, value in others.items() if value]:
            raise UserError(f"--engine {self.spreading.engine} is for metrics of images; leave it out with {given[0]}.")
        from rcg.engines.ray_engine import check_ray

        check_ray()

    def _check_probe(self) -> None:
        default = {f.name: f.default for f in fields(self)}
        given = [k for k in _NOT_OF_PROBES if getattr(self, k) != default[k]]
        if given := given + list(self.sampling.given()) + self.report_settings.given():
            raise UserError(f"--probe looks at features; leave out {flag_of(given[0])}.")

    def _check_report(self) -> None:
        given = self.report_settings.given()
        if self.report is None:
            if given:
                raise UserError(f"{flag_of(given[0])} is for the page of --report DIR; give it, too.")
            return
        from rcg.eval.page import check_folder
        from rcg.eval.sweeps import check_metric

        if self.feature_sample == 0:
            raise UserError("--report shows single images by their features; --feature-sample must be above 0.")
        if given and not self.is_pipeline:
            raise UserError(f"{flag_of(given[0])} is for a pipeline; {self.generated[0]} is none, leave it out.")
        if given and not self.report_settings.sweeps():
            raise UserError(f"{flag_of(given[0])} has no sweep; add --sweep-guidance 1 1.5 2, or another one.")
        check_metric(self.report_settings.sweep_metric, self.report_settings.sweep_images)
        check_folder(self.report)

    @property
    def is_pipeline(self) -> bool:
        """Whether `generated` is the folder of a saved pipeline, or the name of one in the box."""
        folders = [local_folder(place) for place in self.generated]
        return any(folder is not None and (folder / "model_index.json").is_file() for folder in folders)

    def chosen_metrics(self) -> list[str]:
        """Names of metrics, checked."""
        from rcg.eval.metrics import parse_metrics

        more = ["fid_infinity"] * self.fid_infinity + ["copies", "ct"] * (self.train_data is not None)
        return parse_metrics([*self.metrics, *more])


def _extractor(config: EvalConfig) -> FeatureExtractor | str:
    """The extractor of an encoder of ours, which `rcg.eval` does not know; the name of any other."""
    from rcg.recipe.judging import open_features

    ours = config.extractor.startswith("encoder:")
    return open_features(config.extractor, config.extractor_weights, None) if ours else config.extractor


def _pipeline_images(config: EvalConfig, evaluator: Evaluator) -> list[PipelineImages]:
    from rcg.eval.images import PipelineImages
    from rcg.pipeline import RCGPipeline

    assert config.num_images is not None
    pipe = RCGPipeline.from_pretrained(config.generated[0]).to(evaluator.device)
    pipe.set_progress_bar_config(disable=True)
    return [
        PipelineImages(
            pipe,
            config.num_images,
            seed=config.seed + repeat,
            name=config.generated[0],
            labels=config.labels,
            remember=SHOWN_BYTES if (config.report or config.neighbors) and not repeat else 0,
            **config.sampling.given(),
        )
        for repeat in range(config.repeats)
    ]


def _evaluate_images(config: EvalConfig, metrics: list[str]) -> tuple[Examined, list[dict[str, Any]]] | None:
    """Score images, and run the sweeps; without generated images only the reference is measured."""
    from rcg.eval.evaluate import Evaluator
    from rcg.eval.metrics import needs, parse_metrics
    from rcg.eval.references import save_stats
    from rcg.eval.sweeps import plan_sweeps, run_sweeps

    first = Share.from_environment().rank == 0
    crew = None
    if config.spreading.engine == "ray":
        from rcg.engines.ray_engine import RayCrew

        crew = RayCrew(config.spreading.ray_resources())
    evaluator = Evaluator(
        _extractor(config),
        extractor_weights=config.extractor_weights,
        image_size=config.image_size,
        resize=config.resize,
        limit=config.limit,
        seed=config.seed,
        batch_size=config.batch_size,
        precision=config.precision,
        device=config.device,
        feature_sample=config.feature_sample,
        crew=crew,
        on_note=lambda sentence: print(f"rcg-eval: {sentence}", file=sys.stderr) if first else None,
    )
    reference: Any = config.reference
    if config.make_stats is not None:
        assert config.reference is not None
        stats = evaluator.make_stats(config.reference)
        if first:
            save_stats(config.make_stats, stats)
            print(f"The statistics of {stats.n} images are in {config.make_stats}.")
        shown = config.report is not None or config.neighbors is not None
        if not shown and (config.train_data is not None or "train" not in needs(parse_metrics(metrics))):
            reference = stats  # else the images themselves are needed, too
    if not config.generated:
        return None
    generated: Sequence[Any] = _pipeline_images(config, evaluator) if config.is_pipeline else config.generated
    planned, sweeps = [], config.report_settings.sweeps()
    if sweeps:
        some: PipelineImages = generated[0]
        planned = plan_sweeps(
            some.pipeline,
            sweeps,
            config.report_settings.sweep_images,
            seed=config.seed,
            name=some.name,
            labels=config.labels,
            settings=config.sampling.given(),
        )
    examined = evaluator.examine_repeats(
        generated,
        reference=reference,
        metrics=metrics,
        held_out=config.held_out,
        train=config.train_data,
        neighbors=config.neighbors is not None or (config.report is not None and config.held_out is not None),
        keep=config.report is not None,
        serves=parse_metrics([config.report_settings.sweep_metric]) if sweeps else (),
    )
    real = examined.sides.reference or config.reference
    found = run_sweeps(evaluator, sweeps, planned, reference=real, metric=config.report_settings.sweep_metric)
    return examined, found


def _own_settings(rdm: str | Path) -> Mapping[str, Any]:
    """The sampling settings of the pipeline that an RDM is taken from; none of an RDM alone."""
    from rcg.core.components import read_config
    from rcg.sampling.inputs import resolve_sampling

    file = (local_folder(rdm) or Path(rdm)) / "model_index.json"
    sampling = read_config(file).get("sampling") if file.is_file() else None
    return resolve_sampling(sampling) if isinstance(sampling, dict) else {}


def _evaluate_rdm(config: EvalConfig, metrics: list[str]) -> dict[str, Any]:
    """Score the representations of an RDM."""
    import numpy as np
    import torch

    from rcg.core.components import load_any, load_beside, load_scheduler
    from rcg.core.files import model_hash
    from rcg.core.hardware import pick_device
    from rcg.core.rng import derive_seed
    from rcg.data.cache import Cache
    from rcg.data.provenance import check_together
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.eval.reports import combine
    from rcg.eval.vectors import evaluate_representations
    from rcg.rdm.draw import draw_many
    from rcg.rdm.methods import MODELS, SCHEDULERS, open_rdm
    from rcg.sampling.inputs import resolve_labels

    assert config.rdm is not None
    assert config.cache is not None
    cache = Cache(config.cache, ["representations"])
    check_together({Path(config.rdm): load_beside((SSLEncoder,), config.rdm), cache.folder: None}, "representations")
    real = cache.all("representations")
    model: Any = load_any(MODELS, config.rdm)
    rdm = open_rdm(
        model.eval().to(pick_device(config.device)), load_scheduler(config.rdm, *SCHEDULERS, part="rdm_scheduler")
    )
    rdm.check()
    count = min(config.num_images or 5000, len(real) // 2)
    if count < 2:
        raise UserError(f"the cache {config.cache} holds {len(real)} images, but at least 4 are needed.")
    if config.num_images is not None and count < config.num_images:
        sentence = f"{count} representations are drawn, half as many as there are real ones in {config.cache}"
        print(f"rcg-eval: {sentence}, as the floor compares the halves of these.", file=sys.stderr)
    own = _own_settings(config.rdm)
    scale, steps = (
        own.get(name) if (given := getattr(config.sampling, name)) is None else given
        for name in ("rdm_guidance_scale", "rdm_num_inference_steps")
    )
    scale = 1.0 if scale is None else scale
    found, classes = [], int(model.config.num_classes)
    counts, drawn = model.config.label_counts, "random" if classes else None
    if classes and counts is None and cache.labels is not None and classes == cache.num_classes:
        held = np.bincount(cache.labels, minlength=classes).tolist()
        if len(set(held)) > 1:  # else they are as many without it
            counts, drawn = held, "random, as often as in the cache"
    about = {
        "identity": model_hash(model),
        "labels": drawn,
        "guidance_scale": scale,
        "num_inference_steps": steps,
    }
    for seed in range(config.seed, config.seed + config.repeats):
        seeds = [derive_seed(seed, i, 1) for i in range(count)]
        labels = resolve_labels(None, count, classes, seeds, counts)
        with torch.inference_mode():
            sampled = draw_many(
                rdm,
                count,
                seed,
                labels,
                num_inference_steps=steps,
                guidance_scale=scale,
            )
        found.append(
            evaluate_representations(
                sampled.float().cpu().numpy(),
                real,
                metrics,
                seed=config.seed,
                sources={"generated": config.rdm, "reference": config.cache},
                extra={"rdm": about | {"seed": seed}},
            )
        )
    return combine(found)


def run(config: EvalConfig, command: Sequence[str] = ()) -> None:
    """Score, print and write; see `rcg.eval.evaluate.Evaluator` and `rcg.eval.probing`."""
    from rcg.core.files import write_json
    from rcg.eval.reports import FORMAT, format_table, versions

    if config.probing.probe:
        probed = run_probe(config)
        if Share.from_environment().rank > 0:
            return
        rows = {name: one | {"counts": {"generated": one["test"]["images"]}} for name, one in probed["sets"].items()}
        print(format_table(rows))
        probed |= {"format": FORMAT, "command": list(command), "config": flags(config), "versions": versions()}
        if config.out is not None:
            write_json(config.out, probed)
            print(f"Written to {config.out}.")
        return
    if config.classifier is not None:
        chosen = config.classifier_settings
        _classifier.run(config, _extractor(config) if chosen.class_coverage or chosen.membership else None, command)
        return
    metrics = config.chosen_metrics()  # before anything is loaded
    examined: Examined | None = None
    sweeps: list[dict[str, Any]] = []
    if config.rdm is not None:
        result = _evaluate_rdm(config, metrics)
        for figure, reason in result["unavailable"].items():
            print(f"rcg-eval: {figure} is left out: {reason}", file=sys.stderr)
    elif (found := _evaluate_images(config, metrics)) is not None:
        examined, sweeps = found
        result = examined.report
    else:
        return
    if Share.from_environment().rank > 0:
        return
    result |= {"command": list(command), "config": flags(config)}
    name = Path(config.rdm or config.generated[0]).name or str(config.generated[0])
    rows = {name: result}
    if "floor" in result:
        rows["real (the floor)"] = {"metrics": result["floor"], "counts": result["counts"]}
    print(format_table(rows))
    if config.out is not None:  # before what may still fail
        write_json(config.out, result)
        print(f"Written to {config.out}.")
    if config.neighbors is not None and examined is not None:
        from rcg.core.pictures import save_png
        from rcg.eval.matches import find_matches, match_sheet

        nearest, others = find_matches(examined)
        titles = ("samples nearest to a training image | their nearest", "samples at random | their nearest")
        save_png(config.neighbors, match_sheet(list(zip(titles, (nearest, others), strict=True))))
        print(f"Samples beside their nearest training images: {config.neighbors}.")
    if config.report is not None and examined is not None:
        from rcg.eval.images import PipelineImages
        from rcg.eval.page import PAGE, write_evaluation

        pipeline = examined.generated.pipeline if isinstance(examined.generated, PipelineImages) else None
        write_evaluation(config.report, examined, pipeline=cast(Any, pipeline), sweeps=sweeps)
        print(f"The report: {config.report / PAGE}.")


def main(argv: Sequence[str] | None = None) -> None:
    """The command's entry point."""
    command = ["rcg-eval", *(sys.argv[1:] if argv is None else argv)]
    run_command(
        "rcg-eval",
        EvalConfig,
        lambda config: run(config, command),
        "Score generated images: FID, Inception Score, KID, precision and recall, and more, each under a name that says "
        "whose features it used.",
        argv,
    )


if __name__ == "__main__":
    main()
