"""What turns images into the features that the metrics compare; start at `open_extractor`.

Every extractor takes a uint8 batch [B, 3, H, W] and gives float32 features [B, D] and, if it has them, logits [B, C].
`inception` and `inception-768` are the network of FID (`rcg.eval.inception`); `dinov2`, `clip` and `timm:NAME` are models
of timm (`rcg.eval.timm_models`); `ModuleExtractor` wraps a model of our own, such as an `SSLEncoder`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.files import model_hash
from rcg.eval.features import FeatureExtractor, Outputs, read_weights
from rcg.eval.inception import InceptionExtractor, inception_weights
from rcg.eval.timm_models import TimmFeatures, clip_features, dinov2_features, timm_features


class ModuleExtractor(FeatureExtractor):
    """Any module that maps images float [B, 3, H, W] in [0, 1] to features [B, D], such as an `SSLEncoder`.

    Args:
        name: what reports call it.
        module: used in eval mode, without gradient.
        weights_hash: defaults to `rcg.core.files.model_hash(module)`.
        resize: how it brings images to its own size, in words.
    """

    def __init__(
        self, name: str, module: nn.Module, weights_hash: str | None = None, resize: str = "the model's own"
    ) -> None:
        super().__init__()
        self.name, self.resize = name, resize
        self.module = module.eval().requires_grad_(False)
        self.weights_hash = weights_hash or model_hash(module)
        with torch.inference_mode():
            probe = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
            self.dim = self._features(probe.to(next(module.parameters(), probe).device)).shape[1]

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.module(images)
        if features.ndim != 2:
            raise UserError(
                f"{self.name} gives features of shape {list(features.shape)}; an extractor must give [B, D]."
            )
        return features.float()

    def forward(self, images: Tensor) -> Outputs:
        """See `FeatureExtractor.forward`."""
        return Outputs(self._features(images.float() / 255))


def open_extractor(spec: str, weights: Path | None = None) -> FeatureExtractor:
    """The extractor named by `spec`: `inception`, `inception-768`, `dinov2`, `clip` or `timm:NAME[:FILE]`.

    Args:
        spec: its name.
        weights: its weights file; needed by `inception-768`, instead of the download for the others.

    Raises:
        UserError: unknown name, or weights that are missing or do not fit.
    """
    if spec == "inception":
        return InceptionExtractor(read_weights(weights or inception_weights(), spec), full=True)
    if spec == "inception-768":
        if weights is None:
            raise UserError(
                "inception-768 needs --extractor-weights FILE: the Inception of FID under torch-fidelity's key names, "
                "whole or up to Mixed_6e."
            )
        return InceptionExtractor(read_weights(weights, spec), full=False)
    if spec == "dinov2":
        return _of_timm(spec, dinov2_features(weights))
    if spec == "clip":
        return _of_timm(spec, clip_features(weights))
    kind, _, rest = spec.partition(":")
    if kind == "timm" and rest:
        name, _, file = rest.partition(":")
        if file and weights is not None:
            raise UserError(f"{spec} names a weights file already; leave out --extractor-weights.")
        return _of_timm(f"timm:{name}", timm_features(name, Path(file) if file else weights))
    if kind == "encoder" and rest:
        raise UserError(
            f"{spec} is a word of the commands; in Python give rcg.recipe.judging.open_features({spec!r}, None, None)."
        )
    raise UserError(
        f"Unknown extractor {spec!r}; choose inception, inception-768, dinov2, clip, encoder:DIR or timm:NAME[:FILE]."
    )


def _of_timm(name: str, model: TimmFeatures) -> ModuleExtractor:
    return ModuleExtractor(name, model, model_hash(model.model), model.resize)
