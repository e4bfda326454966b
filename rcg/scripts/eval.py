"""`rcg-eval`: score generated images, or a pipeline, against reference images or their statistics."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rcg.core.errors import UserError
from rcg.core.schema import NonNegative, Range, Seed, Size
from rcg.scripts._command import run_command

if TYPE_CHECKING:
    import torch

    from rcg.eval.extractors import FeatureExtractor, Features
    from rcg.eval.references import ReferenceStats

_SAMPLING = ("guidance_scale", "num_inference_steps", "temperature", "rdm_num_inference_steps", "rdm_guidance_scale")


@dataclass
class EvalConfig:
    """What to compare, and how."""

    generated: str
    """A folder of generated images (sub-folders too; sheets named grid*.png are left out), or of a saved RCGPipeline."""
    reference: str | None = None
    """A folder of real images, or a .npz of their statistics (ours, pytorch-fid's, guided-diffusion's)."""
    metrics: tuple[str, ...] = ("fid", "isc", "kid", "prc")
    """Any of fid, isc, kid, prc, separated by commas or spaces."""
    extractor: str = "inception"
    """Whose features: inception, inception-768 (reported as fid-768), encoder:DIR, timm:NAME[:FILE]."""
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
    """Keep the features themselves in --save-reference-stats too, so that kid and prc can use it."""
    num_images: Annotated[int, Range(2, 10**12)] | None = None
    """Images to draw when --generated is a pipeline."""
    guidance_scale: NonNegative | None = None
    """Pipeline: guidance of the image generator; 1 is off. Default, as for the next four: the pipeline's own."""
    num_inference_steps: Size | None = None
    """Pipeline: steps of the image generator."""
    temperature: NonNegative | None = None
    """Pipeline: randomness of the order in which tokens are settled."""
    rdm_num_inference_steps: Size | None = None
    """Pipeline: steps of the representation's sampler."""
    rdm_guidance_scale: NonNegative | None = None
    """Pipeline: guidance of a class-conditional RDM; 1 is off."""

    def validate(self) -> None:
        """Raise a UserError for what cannot be, before anything is loaded."""
        generated = Path(self.generated)
        if self.is_pipeline:
            if self.num_images is None:
                raise UserError(f"{generated} is a pipeline; say how many images to draw with --num-images N.")
            if self.limit is not None and self.limit < self.num_images:
                raise UserError(f"--limit {self.limit} would throw generated images away; lower --num-images instead.")
        else:
            given = [name for name in ("num_images", *_SAMPLING) if getattr(self, name) is not None]
            if given:
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
        """Whether `generated` is the folder of a saved pipeline."""
        return (Path(self.generated) / "model_index.json").is_file()


def _extractor(config: EvalConfig) -> FeatureExtractor:
    from rcg.eval.extractors import ModuleExtractor, open_extractor

    kind, _, folder = config.extractor.partition(":")
    if kind == "encoder" and folder:
        from rcg.core.components import load_model
        from rcg.encoders.ssl_encoder import SSLEncoder

        if config.extractor_weights is not None:
            raise UserError(f"{config.extractor} brings its weights along; leave out --extractor-weights.")
        return ModuleExtractor("encoder", load_model(SSLEncoder, folder))
    return open_extractor(config.extractor, config.extractor_weights)


def _open_images(config: EvalConfig, spec: str, what: str) -> Any:
    from rcg.data.sources import open_source
    from rcg.eval.images import ImageSet

    source = open_source(spec, min_size=1)
    return ImageSet(source, what, image_size=config.image_size, limit=config.limit, seed=config.seed)


class _Drawn:
    """Images of a pipeline, as `ImageSet` gives those of a folder: image i depends on the seed and i only."""

    def __init__(self, config: EvalConfig, device: torch.device) -> None:
        from rcg.pipeline import RCGPipeline

        assert config.num_images is not None
        self.config = config
        self.count = config.num_images
        self.pipeline = RCGPipeline.from_pretrained(config.generated).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.settings = self.pipeline.settings(**{name: getattr(config, name) for name in _SAMPLING})
        self.notes: list[str] = []
        self.size: str | None = None  # known to the tokenizer only

    def __len__(self) -> int:
        return self.count

    def identity(self) -> dict[str, Any]:
        """What the images depend on: the pipeline's weights and configs, the settings in force, the seed."""
        return {"identity": self.pipeline.identity(), "settings": dict(self.settings), "seed": self.config.seed}

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """uint8 tensors [B, 3, H, W]."""
        from rcg.core.pictures import to_uint8
        from rcg.core.rng import sample_generators

        for start in range(0, self.count, batch_size):
            count = min(batch_size, self.count - start)
            generators = sample_generators(self.config.seed, start, count)
            images = self.pipeline(batch_size=count, generator=generators, output_type="pt", **self.settings).images
            yield to_uint8(images)


def _reference(
    config: EvalConfig, extractor: FeatureExtractor, images: Any, stats: ReferenceStats | None, device: torch.device
) -> ReferenceStats | None:
    from rcg.eval.references import ReferenceStats, save_stats

    if images is None:
        return stats
    found = _extract(config, extractor, images, device, "reference")
    reference = ReferenceStats.of(
        found.features, extractor.name, extractor.weights_hash, source=images.source.name, keep_features=True
    )
    if config.save_reference_stats is not None:
        save_stats(config.save_reference_stats, reference, with_features=config.save_features)
    return reference


def _extract(
    config: EvalConfig, extractor: FeatureExtractor, images: Any, device: torch.device, label: str
) -> Features:
    from rcg.eval.extractors import extract

    return extract(
        extractor,
        images.batches(config.batch_size or (16 if device.type == "cpu" else 64)),
        total=len(images),
        device=device,
        precision=config.precision,
        label=f"{label} images",
    )


def run(config: EvalConfig, command: Sequence[str] = ()) -> dict[str, Any]:
    """Do what `config` says; returns the report.

    Raises:
        UserError: something given cannot be used, or no metric can be computed.
    """
    from rcg.core.hardware import pick_device
    from rcg.eval import metrics as m
    from rcg.eval.references import load_stats
    from rcg.eval.reports import format_table, report, write_report

    wanted = m.parse_metrics(config.metrics)
    device = pick_device(config.device)
    stats = images = None
    if config.reference is not None and config.reference.endswith(".npz"):
        stats = load_stats(Path(config.reference))
    extractor = _extractor(config)
    if stats is not None:
        stats.check(Path(config.reference or ""), extractor.name, extractor.dim, extractor.weights_hash)

    reasons = {
        name: m.why_unavailable(
            name,
            extractor.name,
            extractor.has_logits,
            has_reference=config.reference is not None,
            has_reference_features=stats is None or stats.features is not None,
        )
        for name in wanted
    }
    unavailable = {m.metric_name(name, extractor.name): reason for name, reason in reasons.items() if reason}
    wanted = [name for name in wanted if not reasons[name]]
    if not wanted:
        raise UserError(m.none_possible(unavailable))
    for name, reason in unavailable.items():
        print(f"rcg-eval: {name} is left out: {reason}", file=sys.stderr)

    if config.reference is not None and stats is None and (wanted != ["isc"] or config.save_reference_stats):
        images = _open_images(config, config.reference, "reference")
    drawn = _Drawn(config, device) if config.is_pipeline else _open_images(config, config.generated, "generated")
    reference = _reference(config, extractor, images, stats, device)
    generated = _extract(config, extractor, drawn, device, "generated")
    scores = m.compute_metrics(wanted, extractor.name, generated, reference, seed=config.seed)
    scores.unavailable = unavailable | scores.unavailable
    scores.notes += drawn.notes + (images.notes if images is not None else [])
    if images is not None and drawn.size not in (None, images.size):
        scores.notes.append(
            f"The generated images are {drawn.size} px and the reference {images.size} px; --image-size makes them alike."
        )
    for note in scores.notes:
        print(f"rcg-eval: {note}", file=sys.stderr)

    result = report(
        scores,
        extractor=extractor.name,
        weights_hash=extractor.weights_hash,
        counts={"generated": len(generated), "reference": reference.n if reference is not None else None},
        sources={"generated": config.generated, "reference": config.reference},
        command=command,
        extra={
            **({"pipeline": drawn.identity()} if isinstance(drawn, _Drawn) else {}),
            "config": {f.name: _plain(getattr(config, f.name)) for f in fields(config)},
        },
    )
    print(format_table({Path(config.generated).name or config.generated: result}))
    if config.out is not None:
        write_report(config.out, result)
        print(f"Written to {config.out}.")
    return result


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


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
