"""`rcg-tune`: find the settings that a pipeline samples best with, and make them its own."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rcg.core.errors import UserError
from rcg.core.parts import Share
from rcg.core.schema import OutFolder, Range, Seed, Size
from rcg.core.shipped import BOX, local_folder
from rcg.scripts._command import flags, run_command

if TYPE_CHECKING:
    from rcg.eval.evaluate import Evaluator, Given
    from rcg.pipeline import RCGPipeline


@dataclass
class Config:
    """Flags of rcg-tune."""

    model: str
    """Folder of a pipeline, or its name in the box or on the Hub (then with --no-write)."""
    reference: str
    """A folder of real images, or an .npz of them or of their statistics (rcg-eval --make-stats)."""
    out: OutFolder
    """Folder for tune.json, which holds every trial and the comparison of the finalists."""
    metric: str = "fid"
    """The figure to tune by: fid, kid, mind, cmmd, precision, recall, f_score, density or coverage."""
    tune: tuple[str, ...] = ()
    """What to tune, each perhaps with its range, as in guidance_scale=1:4: guidance_scale, guidance_interval,
    guidance_schedule, temperature, num_inference_steps, rdm_guidance_scale, rdm_num_inference_steps. Default: guidance and
    temperature, as far as the model has them."""
    num_images: Annotated[int, Range(16, 10**6)] = 500
    """Images of a trial, from the same noise in every trial."""
    trials: Annotated[int, Range(3, 10**5)] = 24
    """At most so many, the model's own settings among them."""
    budget: str | None = None
    """Time for all of it, such as 10m: fewer trials where they do not fit."""
    finalists: Annotated[int, Range(1, 100)] = 3
    """The best trials, which are compared with the model's own settings on fresh seeds."""
    repeats: Annotated[int, Range(2, 100)] = 4
    """Fresh seeds for each finalist; more tell smaller differences."""
    write: bool = True
    """Make the winner the model's own settings (in its model_index.json). Where nothing is clearly better, nothing changes."""
    extractor: str = "inception"
    """Whose features: inception, inception-768, dinov2, clip, encoder (the pipeline's own), encoder:DIR, timm:NAME[:FILE]."""
    extractor_weights: Path | None = None
    """The extractor's weights file; without it, inception and timm's models download theirs."""
    limit: Annotated[int, Range(2, 10**12)] = 5000
    """At most so many reference images, drawn by the seed; statistics are taken as they are."""
    image_size: Size | None = None
    """Resize and centre-crop the reference images to this many pixels first."""
    batch_size: Size | None = None
    """Images drawn at once. Default: 16 on a CPU, 64 on a GPU."""
    seed: Seed = 0
    """Of the search's images and proposals; the finals take the seeds after it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the extractor."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where extractor and pipeline run."""
    resume: bool = False
    """Go on with the search that --out holds; --trials and --budget may be others."""

    def validate(self) -> None:
        """Raise a UserError for what cannot be, before anything is loaded."""
        from rcg.core.durations import parse_duration

        if self.budget is not None:
            parse_duration(self.budget)
        if Share.from_environment().world > 1:
            raise UserError(
                "rcg-tune is one process, as each trial follows from those before; start it without torchrun."
            )


def _check_writable(config: Config) -> None:
    folder = local_folder(config.model)
    if config.write and (folder is None or BOX in folder.resolve().parents):
        raise UserError(
            f"the settings of {config.model} cannot be written, as it is no folder of yours; add --no-write, or save it into "
            "one first."
        )


def _open_reference(config: Config, evaluator: Evaluator) -> tuple[Given, str]:
    """The reference, and a hash of what it consists of."""
    from rcg.eval.images import ImageSet

    path = Path(config.reference)
    if path.suffix == ".npz":
        if not path.is_file():
            raise UserError(f"--reference {path}: there is no statistics file or .npz of images; check the name.")
        with path.open("rb") as f:
            return config.reference, hashlib.file_digest(f, "sha256").hexdigest()[:16]
    images = evaluator.open(config.reference, "reference")
    return images, images.source.fingerprint if isinstance(images, ImageSet) else ""


def _identity(
    config: Config, pipe: RCGPipeline, evaluator: Evaluator, axes: Sequence[Any], contents: str
) -> dict[str, Any]:
    """All that the values of a search depend on, beside settings."""
    return {
        "model": pipe.identity(),
        "reference": config.reference,
        "contents of the reference": contents,
        "limit": config.limit,
        "image_size": config.image_size,
        "metric": config.metric.lower(),
        "num_images": config.num_images,
        "extractor": evaluator.extractor.name,
        "weights": evaluator.extractor.weights_hash,
        "precision": config.precision,
        "seed": config.seed,
        "axes": [axis.text() for axis in axes],
    }


def run(config: Config) -> None:
    """Search, print, and write; see `rcg.tune.search.Search`."""
    from rcg.core.files import claimed

    begun = time.monotonic()
    with claimed(config.out):
        _run(config, begun)


def _run(config: Config, begun: float) -> None:
    from diffusers.utils import logging

    from rcg.core.durations import parse_duration
    from rcg.eval.evaluate import Evaluator
    from rcg.eval.reports import versions
    from rcg.pipeline import RCGPipeline
    from rcg.recipe.judging import open_features
    from rcg.sampling.stored import write_sampling
    from rcg.tune.journal import Journal
    from rcg.tune.judge import ImageJudge, check_figure
    from rcg.tune.search import Plan, Search, require_optuna
    from rcg.tune.space import open_space
    from rcg.tune.table import final_table, search_table

    require_optuna()
    figure = check_figure(config.metric)
    journal = Journal(config.out, config.resume)
    _check_writable(config)
    logging.disable_progress_bar()
    pipe = RCGPipeline.from_pretrained(config.model)
    pipe.set_progress_bar_config(disable=True)
    own = journal.own or dict(pipe.settings())
    pipe.register_to_config(sampling=own)  # not those of a winner that is written already

    def settings(**given: Any) -> Mapping[str, Any]:
        return pipe.settings(**(own | given))

    axes = open_space(config.tune, settings)
    evaluator = Evaluator(
        open_features(config.extractor, config.extractor_weights, pipe.encoder),
        image_size=config.image_size,
        limit=config.limit,
        seed=config.seed,
        batch_size=config.batch_size,
        precision=config.precision,
        device=config.device,
        on_note=lambda sentence: print(f"rcg-tune: {sentence}", file=sys.stderr),
    )
    pipe.to(evaluator.device)
    reference, contents = _open_reference(config, evaluator)
    judge = ImageJudge(pipe, evaluator, reference, figure, config.num_images, config.model)
    identity = _identity(config, pipe, evaluator, axes, contents)
    journal.begin(identity, judge.name, judge.more_is_better)
    journal.record["extra"] = {"config": flags(config), "versions": versions()}
    print(f"Tuning {'; '.join(axis.text() for axis in axes)}, by {judge.name} of {config.num_images} images.")
    plan = Plan(
        trials=config.trials,
        budget=None if config.budget is None else parse_duration(config.budget),
        finalists=config.finalists,
        repeats=config.repeats,
        seed=config.seed,
    )
    say = partial(print, flush=True)
    search = Search(axes, settings, judge, journal, plan, say, begun=begun)
    winner = search.run()
    print(f"\n{search_table(journal.record, search.tuned)}\n\n{final_table(journal.record, search.tuned)}\n")
    if winner == own and not journal.record["written"]:
        print("No finalist is clearly better than the model's own settings on fresh seeds, so these stay.")
    elif not config.write:
        print(f"Better: {', '.join(search.tuned(winner))}. The model is left as it is (--no-write).")
    else:
        folder = local_folder(config.model)
        assert folder is not None
        write_sampling(folder, {name: winner[name] for name in search.names})
        journal.record["written"] = True
        journal.save()
        print(f"{config.model} now samples with {', '.join(search.tuned(winner))}.")
    print(f"Every trial is in {journal.path}.")


def main(argv: Sequence[str] | None = None) -> None:
    """The command's entry point."""
    run_command(
        "rcg-tune",
        Config,
        run,
        "Find the guidance, temperature or steps that a pipeline samples best with, on few images, and make them its own.",
        argv,
    )


if __name__ == "__main__":
    main()
