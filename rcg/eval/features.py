"""The interface of feature extractors, reading their weights, and running one over an image set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rcg.core.errors import UserError
from rcg.core.state_dicts import some

AT_HAND = (
    "Extractors that need no download: inception-768 with --extractor-weights FILE (the network up to Mixed_6e, "
    "reported as FID-768), encoder:DIR (an encoder trained here), timm:NAME:FILE (a timm model and its weights)."
)


@dataclass(frozen=True)
class Features:
    """Features of an image set: `features` float32 [N, D] and `logits` float32 [N, C] or None, in the images' order."""

    features: np.ndarray
    logits: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.features)


class FeatureExtractor(nn.Module, ABC):
    """The one interface of this file.

    Attributes:
        name: what reports call it; it decides the metrics' names (`rcg.eval.metrics.metric_name`).
        dim: D, the number of features.
        has_logits: whether `forward` gives logits, which the Inception Score needs.
        weights_hash: a short hash that is equal exactly when the weights are.
    """

    name: str
    dim: int
    has_logits: bool = False
    weights_hash: str

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 images [B, 3, H, W] → (features float32 [B, dim], logits float32 [B, C] or None)."""


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors` or a torch file, without unpickling anything but tensors.

    Raises:
        UserError: the file is missing, broken, or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{what}: there is no weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"{what}: {path} cannot be read as weights ({reason}).") from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{what}: {path} does not hold named weights; give a file with one state dict.")
    return dict(state)


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load `state` into `module`; every key must be there, of the right shape, and none be left over.

    The tensors are taken over, not copied, so `module` may be on the meta device.

    Raises:
        UserError: naming the keys that are missing, unknown or misshapen.
    """
    own = module.state_dict()
    missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
    if missing:
        raise UserError(f"{what}: the weights file lacks {some(missing)}; it is not a file for this network.")
    if unknown:
        raise UserError(f"{what}: the weights file holds unknown keys {some(unknown)}; it is not for this network.")
    wrong = [k for k in own if own[k].shape != state[k].shape]
    if wrong:
        raise UserError(f"{what}: the weights file has other shapes at {some(wrong)}; it is not for this network.")
    module.load_state_dict(dict(state), assign=True)


def extract(
    extractor: FeatureExtractor,
    batches: Iterable[Tensor],
    *,
    total: int | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    label: str = "features",
    progress: bool = True,
) -> Features:
    """Run an extractor once over a whole image set.

    Args:
        extractor: moved to `device`.
        batches: uint8 tensors [B, 3, H, W].
        total: the number of images, for the progress bar.
        precision: "fp32", or "bf16": faster where the processor has bf16 units, features differ by 1 to 2 %.
        label: the progress bar's name.

    Returns:
        Features of all images, float32, in order.

    Raises:
        UserError: no images, or features that are not finite.
    """
    device = torch.device(device)
    extractor = extractor.to(device).eval()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    features: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    with torch.inference_mode(), autocast, tqdm(total=total, desc=label, unit="image", disable=not progress) as bar:
        for images in batches:
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
                raise ValueError(f"expected uint8 images [B, 3, H, W], got {images.dtype} {list(images.shape)}")
            feature, logit = extractor(images.to(device))
            features.append(feature.float().cpu().numpy())
            if logit is not None:
                logits.append(logit.float().cpu().numpy())
            bar.update(len(images))
    if not features:
        raise UserError("There are no images to extract features from.")
    result = Features(np.concatenate(features), np.concatenate(logits) if logits else None)
    if not np.isfinite(result.features).all():
        bad = int((~np.isfinite(result.features).all(axis=1)).sum())
        raise UserError(
            f"{extractor.name} gives non-finite features for {bad} images; use --precision fp32 or check it."
        )
    return result
