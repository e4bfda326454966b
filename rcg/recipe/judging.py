"""Scoring images against those that were held out: by Inception where its weights can be had, else by the encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rcg.core.components import load_model
from rcg.core.errors import UserError
from rcg.core.hardware import pick_bf16
from rcg.core.pictures import png_text, save_png
from rcg.data.images import DecodePool, Framing
from rcg.data.sources import ImageSource
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.eval.evaluate import Evaluator
from rcg.eval.extractors import ModuleExtractor, open_extractor
from rcg.eval.features import FeatureExtractor
from rcg.eval.metrics import metric_name
from rcg.eval.references import save_stats

STATISTICS = "held-out.npz"
FINAL_METRICS = ("fid", "kid", "prc", "dc")


def choose_extractor(
    wanted: str | None, weights: Path | None, encoder: SSLEncoder, say: Callable[[str], None]
) -> tuple[str, FeatureExtractor]:
    """The extractor that is asked for; if none is, Inception where its weights can be had, else the encoder.

    Returns:
        its name among the flags, and itself.

    Raises:
        UserError: what is asked for cannot be had.
    """
    if wanted is not None or weights is not None:
        return wanted or "inception", open_features(wanted or "inception", weights, encoder)
    try:
        return "inception", open_extractor("inception")
    except UserError as e:
        say(
            f"{str(e).partition(' Extractors that')[0]} So the encoder judges: its figures compare with each other, not "
            "with published FIDs, and favour models that were trained on it."
        )
        return "encoder", of_encoder(encoder)


def open_features(spec: str, weights: Path | None, encoder: SSLEncoder | None) -> FeatureExtractor:
    """The extractor that a flag names: `encoder` is the one at hand, `encoder:DIR` another, else see `open_extractor`.

    Args:
        spec: the flag.
        weights: the extractor's weights file, if it is given.
        encoder: the one at hand, or None.

    Raises:
        UserError: what is asked for cannot be had.
    """
    kind, _, folder = spec.partition(":")
    if kind != "encoder":
        return open_extractor(spec, weights)
    if weights is not None:
        raise UserError(f"{spec} brings its weights along; leave out --extractor-weights.")
    if folder:
        return of_encoder(load_model(SSLEncoder, folder))
    if encoder is None:
        raise UserError("--extractor encoder: there is no encoder in what --model names; name another extractor.")
    return of_encoder(encoder)


def of_encoder(encoder: SSLEncoder) -> ModuleExtractor:
    """An encoder as an extractor."""
    return ModuleExtractor("encoder", encoder)


def write_pictures(source: ImageSource, folder: Path, size: int) -> None:
    """The images of a source as square PNG files 000000.png …, as a generator of `size` px should make them."""
    framing, pool = Framing(size), DecodePool()

    def write(index: int) -> None:
        path = folder / f"{index:06d}.png"
        if png_text(path) is None:  # not there, or torn by a power failure
            save_png(path, Image.fromarray(framing.base(source.image(index))))

    for _ in pool.map(write, range(len(source))):
        pass


class Judge:
    """Scores folders of images against one reference, whose features are computed once.

    Args:
        extractor: whose features.
        reference: folder of the held-out images.
        device: where the extractor runs.
    """

    def __init__(self, extractor: FeatureExtractor, reference: Path, device: torch.device) -> None:
        self.reference, self.statistics = reference, reference.parent / STATISTICS
        self.evaluator = Evaluator(extractor, precision=precision_of(device), device=device.type)

    @property
    def metric(self) -> str:
        """What the Fréchet distance is called here."""
        return metric_name("fid", self.evaluator.extractor.name)

    def score(self, images: Path, metrics: tuple[str, ...] = FINAL_METRICS) -> dict[str, Any]:
        """The contents of a `metrics.json` of a folder of images; see `Evaluator.evaluate`."""
        if not self.statistics.is_file():
            save_stats(self.statistics, self.evaluator.make_stats(self.reference))
        return self.evaluator.evaluate(images, reference=self.statistics, metrics=metrics)

    def distance(self, images: Path) -> float:
        """The Fréchet distance of a folder of images."""
        return float(self.score(images, ("fid",))["metrics"][self.metric])


def precision_of(device: torch.device) -> str:
    """Of the extractor: bf16 where that is quicker; both sides are measured alike."""
    return "bf16" if pick_bf16("auto", device) else "fp32"
