"""`evaluate`: from two sets of images to the contents of a `metrics.json`. What `rcg-eval` does, for Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rcg.core.errors import UserError
from rcg.core.hardware import pick_device
from rcg.data.sources import open_source
from rcg.eval.extractors import FeatureExtractor, Features, extract, open_extractor
from rcg.eval.images import ImageSet, PipelineImages
from rcg.eval.metrics import METRICS, compute_metrics, metric_name, none_possible, parse_metrics, why_unavailable
from rcg.eval.references import ReferenceStats, load_stats, save_stats
from rcg.eval.reports import report


def evaluate(
    generated: str | Path | PipelineImages,
    reference: str | Path | None = None,
    metrics: Sequence[str] = METRICS,
    extractor: FeatureExtractor | str = "inception",
    *,
    extractor_weights: Path | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    precision: str = "fp32",
    device: torch.device | str = "auto",
    save_reference_stats: Path | None = None,
    save_features: bool = False,
    on_note: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """Score generated images.

    Args:
        generated: a source of images (see `rcg.data.sources.open_source`), or those of a pipeline.
        reference: a source of real images, or a `.npz` of their statistics; only the Inception Score needs none.
        metrics: names in `METRICS`.
        extractor: whose features, or its name, see `open_extractor`.
        extractor_weights: the weights file of an extractor that is named.
        image_size, limit: see `ImageSet`; of both sides, but not of a pipeline's images.
        seed: of the limit's draw, KID's subsets and the Inception Score's splits.
        batch_size: images in one pass of extractor and pipeline; None is 16 on a CPU (fastest there), 64 on a GPU.
        precision: of the extractor, see `rcg.eval.features.extract`.
        device: where the extractor runs.
        save_reference_stats: write the statistics of the reference images to this `.npz`.
        save_features: their features too, so that KID and precision and recall can use the file.
        on_note: called with a sentence each time that there is something a reader of the figures should know.

    Returns:
        What `rcg.eval.reports.report` makes of it; of a pipeline's images also `pipeline`, what they depend on.

    Raises:
        UserError: something given cannot be used, or no metric can be computed.
    """
    wanted = parse_metrics(metrics)
    device = pick_device(str(device))
    stats = load_stats(Path(reference)) if reference is not None and str(reference).endswith(".npz") else None
    if isinstance(extractor, str):
        extractor = open_extractor(extractor, extractor_weights)
    if stats is not None:
        stats.check(Path(str(reference)), extractor.name, extractor.dim, extractor.weights_hash)

    reasons = {
        name: why_unavailable(
            name,
            extractor.name,
            extractor.has_logits,
            has_reference=reference is not None,
            has_reference_features=stats is None or stats.features is not None,
        )
        for name in wanted
    }
    unavailable = {metric_name(name, extractor.name): reason for name, reason in reasons.items() if reason}
    wanted = [name for name in wanted if not reasons[name]]
    if not wanted:
        raise UserError(none_possible(unavailable))
    for name, reason in unavailable.items():
        on_note(f"{name} is left out: {reason}")

    def images_of(spec: str | Path, what: str) -> ImageSet:
        source = open_source(spec, min_size=1)
        return ImageSet(source, what, image_size=image_size, limit=limit, seed=seed)

    def features_of(images: ImageSet | PipelineImages, what: str) -> Features:
        batches = images.batches(batch_size or (16 if device.type == "cpu" else 64))
        label = f"{what} images"
        return extract(extractor, batches, total=len(images), device=device, precision=precision, label=label)

    real = None
    if reference is not None and stats is None and (wanted != ["isc"] or save_reference_stats is not None):
        real = images_of(reference, "reference")
    fake = generated if isinstance(generated, PipelineImages) else images_of(generated, "generated")
    if real is not None:
        found = features_of(real, "reference").features
        stats = ReferenceStats.of(found, extractor.name, extractor.weights_hash, real.source.name, keep_features=True)
        if save_reference_stats is not None:
            save_stats(save_reference_stats, stats, with_features=save_features)
    features = features_of(fake, "generated")
    scores = compute_metrics(wanted, extractor.name, features, stats, seed=seed)
    scores.unavailable = unavailable | scores.unavailable
    scores.notes += fake.notes + (real.notes if real is not None else [])
    if real is not None and fake.size not in (None, real.size):
        scores.notes.append(
            f"The generated images are {fake.size} px and the reference {real.size} px; --image-size makes them alike."
        )
    for note in scores.notes:
        on_note(note)
    return report(
        scores,
        extractor=extractor.name,
        weights_hash=extractor.weights_hash,
        counts={"generated": len(features), "reference": None if stats is None else stats.n},
        sources={
            "generated": fake.name if isinstance(fake, PipelineImages) else str(generated),
            "reference": None if reference is None else str(reference),
        },
        extra={"pipeline": fake.identity()} if isinstance(fake, PipelineImages) else None,
    )
