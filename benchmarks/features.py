"""The extractor that a benchmark's flags name."""

from __future__ import annotations

from pathlib import Path

from rcg.core.components import load_model
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.eval.extractors import ModuleExtractor, open_extractor
from rcg.eval.features import FeatureExtractor


def open_named(name: str, weights: Path | None = None) -> FeatureExtractor:
    """What `rcg-eval --extractor NAME --extractor-weights WEIGHTS` uses: also `encoder:DIR`, `encoder:rcg/cifar10`."""
    kind, _, folder = name.partition(":")
    if kind == "encoder":
        return ModuleExtractor("encoder", load_model(SSLEncoder, folder))
    return open_extractor(name, weights)
