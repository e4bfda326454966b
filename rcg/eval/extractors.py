"""What turns images into the features that the metrics compare; start at `open_extractor`.

Every extractor takes a uint8 batch [B, 3, H, W] and gives float32 features [B, D] and, if it has them, logits [B, C].
`inception` and `inception-768` are the network of FID (`rcg.eval.inception`); `timm:NAME` is any timm model;
`ModuleExtractor` wraps a model of our own, such as an `SSLEncoder`. `rcg.eval.features.extract` runs one of them.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.files import model_hash
from rcg.eval.features import AT_HAND, FeatureExtractor, Features, extract, load_exactly, read_weights
from rcg.eval.inception import InceptionExtractor, inception_weights

__all__ = [
    "FeatureExtractor",
    "Features",
    "InceptionExtractor",
    "ModuleExtractor",
    "extract",
    "open_extractor",
    "timm_extractor",
]


class ModuleExtractor(FeatureExtractor):
    """Any module that maps images float [B, 3, H, W] in [0, 1] to features [B, D], such as an `SSLEncoder`.

    Args:
        name: what reports call it.
        module: used in eval mode, without gradient.
        weights_hash: defaults to `rcg.core.files.model_hash(module)`.
    """

    def __init__(self, name: str, module: nn.Module, weights_hash: str | None = None) -> None:
        super().__init__()
        self.name = name
        self.module = module.eval().requires_grad_(False)
        self.weights_hash = weights_hash or model_hash(module)
        with torch.inference_mode():
            probe = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
            self.dim = self._features(probe).shape[1]

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.module(images)
        if features.ndim != 2:
            raise UserError(
                f"{self.name} gives features of shape {list(features.shape)}; an extractor must give [B, D]."
            )
        return features.float()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._features(images.float() / 255), None


class _TimmFeatures(nn.Module):
    """A timm model without its classifier, behind its own resize (bicubic, antialiased) and normalisation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        import timm

        config = timm.data.resolve_model_data_config(model)
        self.model = model
        self.size = tuple(config["input_size"][1:])
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.model((images - self.mean) / self.std)


def timm_extractor(name: str, weights: Path | None = None) -> ModuleExtractor:
    """The pooled features of timm's model `name`, with its published weights or those of a file.

    Raises:
        UserError: timm has no such model, the weights cannot be downloaded, or the file does not fit the model.
    """
    import timm

    what = f"timm:{name}"
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]
        hint = f"such as {', '.join(close)}" if close else "see timm.list_models()"
        raise UserError(f"timm has no model {name!r}; choose one it has, {hint}.")
    if weights is None:
        try:
            model = timm.create_model(name, pretrained=True, num_classes=0)
        except (OSError, RuntimeError, ValueError) as e:
            reason = (str(e).splitlines() or [type(e).__name__])[0]
            raise UserError(
                f"The published weights of {what} cannot be had ({reason}); give a file as {what}:FILE, "
                f"or use another extractor. {AT_HAND}"
            ) from None
    else:
        model = timm.create_model(name, pretrained=False, num_classes=0)
        state = read_weights(weights, what)
        heads = model.pretrained_cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        state = {k: v for k, v in state.items() if not k.startswith(tuple(f"{h}." for h in heads))}
        load_exactly(model, state, what)
    return ModuleExtractor(what, _TimmFeatures(model), model_hash(model))


def open_extractor(spec: str, weights: Path | None = None) -> FeatureExtractor:
    """The extractor named by `spec`: `inception`, `inception-768` or `timm:NAME[:FILE]`.

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
    kind, _, rest = spec.partition(":")
    if kind == "timm" and rest:
        name, _, file = rest.partition(":")
        if file and weights is not None:
            raise UserError(f"{spec} names a weights file already; leave out --extractor-weights.")
        return timm_extractor(name, Path(file) if file else weights)
    raise UserError(f"Unknown extractor {spec!r}; choose inception, inception-768, encoder:DIR or timm:NAME[:FILE].")
