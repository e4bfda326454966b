"""`rcg-eval`: score generated images, or a pipeline, against reference images or their statistics."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rcg.core.errors import UserError
from rcg.core.schema import Range, Seed, Size
from rcg.core.shipped import local_folder
from rcg.scripts._command import SamplingSettings, flags, run_command

if TYPE_CHECKING:
    from rcg.eval.extractors import FeatureExtractor
    from rcg.eval.images import PipelineImages


@dataclass
class EvalConfig:
    """What to compare, and how."""

    generated: str
    """A folder of generated images (sub-folders too; sheets named grid*.png are left out), or of a saved RCGPipeline
    (or its name in the box, rcg/cifar10)."""
    reference: str | None = None
    """A folder of real images, or a .npz of their statistics (ours, pytorch-fid's, guided-diffusion's)."""
    metrics: tuple[str, ...] = ("fid", "isc", "kid", "prc", "dc")
    """Any of fid, isc, kid, prc (precision, recall), dc (density, coverage), separated by commas or spaces."""
    extractor: str = "inception"
    """Whose features: inception, inception-768 (reported as fid-768), encoder:DIR (encoder:rcg/cifar10), timm:NAME[:FILE]."""
    extractor_weights: Path | None = None
    """The extractor's weights file; without it, `inception` and timm download theirs."""
    out: Path | None = None
    """Write the figures here as JSON; they are printed in any case."""
    batch_size: Size | None = None
    """Images in one pass of the extractor, and of the pipeline. Default: 16 on a CPU (fastest there), 64 on a GPU."""
    limit: Annotated[int, Range(2, 10**12)] | None = None
    """At most so many images of each side, drawn by the seed."""
    image_size: Size | None = None
    """Resize and centre-crop all images to this many pixels first; needed where they differ in size."""
    seed: Seed = 0
    """Of --limit's draw, KID's subsets, the Inception Score's splits, and the pipeline's images."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the extractor: bf16 is faster on some processors, and changes the features by 1 to 2 %."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the extractor and the pipeline run."""
    save_reference_stats: Path | None = None
    """Write the statistics of the reference images to this .npz, to be given as --reference later."""
    save_features: bool = False
    """Keep the features themselves in --save-reference-stats too, so that kid, prc and dc can use it."""
    num_images: Annotated[int, Range(2, 10**12)] | None = None
    """Images to draw when --generated is a pipeline."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """Of a pipeline. Default: its own."""

    def validate(self) -> None:
        """Raise a UserError for what cannot be, before anything is loaded."""
        generated = Path(self.generated)
        if self.is_pipeline:
            if self.num_images is None:
                raise UserError(f"{generated} is a pipeline; say how many images to draw with --num-images N.")
            if self.limit is not None and self.limit < self.num_images:
                raise UserError(f"--limit {self.limit} would throw generated images away; lower --num-images instead.")
        else:
            if given := ["num_images"] * (self.num_images is not None) + list(self.sampling.given()):
                raise UserError(
                    f"--{given[0].replace('_', '-')} is for a pipeline, but {generated} has no model_index.json; "
                    "leave it out."
                )
        if self.save_features and self.save_reference_stats is None:
            raise UserError("--save-features needs --save-reference-stats FILE to keep them in.")
        if self.save_reference_stats is not None:
            if self.save_reference_stats.suffix != ".npz":
                raise UserError(f"--save-reference-stats {self.save_reference_stats}: give a name that ends in .npz.")
            if self.reference is None or self.reference.endswith(".npz"):
                raise UserError("--save-reference-stats needs --reference DIR, a folder of images to measure.")
        for path in (self.out, self.save_reference_stats):
            if path is not None and path.is_dir():
                raise UserError(f"{path} is a folder; give the name of a file to write.")

    @property
    def is_pipeline(self) -> bool:
        """Whether `generated` is the folder of a saved pipeline, or the name of one in the box."""
        folder = local_folder(self.generated)
        return folder is not None and (folder / "model_index.json").is_file()


def _extractor(config: EvalConfig) -> FeatureExtractor | str:
    """The extractor of an encoder of ours, which `rcg.eval` does not know; the name of any other."""
    kind, _, folder = config.extractor.partition(":")
    if kind != "encoder" or not folder:
        return config.extractor
    from rcg.core.components import load_model
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.eval.extractors import ModuleExtractor

    if config.extractor_weights is not None:
        raise UserError(f"{config.extractor} brings its weights along; leave out --extractor-weights.")
    return ModuleExtractor("encoder", load_model(SSLEncoder, folder))


def _pipeline_images(config: EvalConfig) -> PipelineImages:
    from rcg.core.hardware import pick_device
    from rcg.eval.images import PipelineImages
    from rcg.pipeline import RCGPipeline

    assert config.num_images is not None
    pipe = RCGPipeline.from_pretrained(config.generated).to(pick_device(config.device))
    pipe.set_progress_bar_config(disable=True)
    return PipelineImages(pipe, config.num_images, seed=config.seed, name=config.generated, **config.sampling.given())


def run(config: EvalConfig, command: Sequence[str] = ()) -> None:
    """Score, print and write; see `rcg.eval.evaluate.evaluate`."""
    from rcg.eval.evaluate import evaluate
    from rcg.eval.metrics import parse_metrics
    from rcg.eval.reports import format_table, write_report

    metrics = parse_metrics(config.metrics)  # before anything is loaded
    result = evaluate(
        _pipeline_images(config) if config.is_pipeline else config.generated,
        config.reference,
        metrics,
        _extractor(config),
        extractor_weights=config.extractor_weights,
        image_size=config.image_size,
        limit=config.limit,
        seed=config.seed,
        batch_size=config.batch_size,
        precision=config.precision,
        device=config.device,
        save_reference_stats=config.save_reference_stats,
        save_features=config.save_features,
        on_note=lambda sentence: print(f"rcg-eval: {sentence}", file=sys.stderr),
    )
    result |= {"command": list(command), "config": flags(config)}
    print(format_table({Path(config.generated).name or config.generated: result}))
    if config.out is not None:
        write_report(config.out, result)
        print(f"Written to {config.out}.")


def main(argv: Sequence[str] | None = None) -> None:
    """The command's entry point."""
    command = ["rcg-eval", *(sys.argv[1:] if argv is None else argv)]
    run_command(
        "rcg-eval",
        EvalConfig,
        lambda config: run(config, command),
        "Score generated images: FID, Inception Score, KID, precision and recall, each under a name that says whose "
        "features it used.",
        argv,
    )


if __name__ == "__main__":
    main()
