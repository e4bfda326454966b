"""The interface of feature extractors, reading their weights, and running one over a stream of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rcg.core.errors import UserError, first_line
from rcg.core.precision import whole_fp32
from rcg.core.state_dicts import some

AT_HAND = (
    "Extractors that need no download: inception-768 with --extractor-weights FILE (the network up to Mixed_6e, "
    "reported as FID-768), encoder:DIR (an encoder trained here), timm:NAME:FILE (a timm model and its weights)."
)
CPU_BLOCK = 16
"""Images in one pass on a CPU: fastest there, and always the same, so that features do not depend on the batch."""


class Outputs(NamedTuple):
    """What an extractor makes of B images.

    Attributes:
        features: float32 [B, D].
        logits: float32 [B, C], or None.
        spatial: float32 [B, S], features that keep their places in the image, for sFID; or None.
    """

    features: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


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
        spatial_dim: S, 0 if `forward` gives no spatial features.
        weights_hash: a short hash that is equal exactly when the weights are.
        resize: how it brings images to its own size, in words.
    """

    name: str
    dim: int
    has_logits: bool = False
    spatial_dim: int = 0
    weights_hash: str
    resize: str = "none"

    @abstractmethod
    def forward(self, images: Tensor) -> Outputs:
        """uint8 images [B, 3, H, W] → what it makes of them."""


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
        reason = first_line(e)
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


def _regroup(batches: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """The same images, `rows` at a time (fewer at the end and where their size changes)."""
    waiting: list[Tensor] = []
    for images in batches:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 images [B, 3, H, W], got {images.dtype} {list(images.shape)}")
        if waiting and waiting[0].shape[1:] != images.shape[1:]:
            yield from torch.cat(waiting).split(rows)
            waiting = []
        whole = torch.cat([*waiting, images]) if waiting else images
        parts = list(whole.split(rows)) if len(whole) else []
        waiting = [parts.pop()] if parts and len(parts[-1]) < rows else []
        yield from parts
    if waiting:
        yield from waiting


def run_extractor(
    extractor: FeatureExtractor,
    batches: Iterable[Tensor],
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    rows: int = 64,
) -> Iterator[tuple[Tensor, Outputs]]:
    """Run an extractor over a stream of images.

    On a CPU the images always go through in blocks of `CPU_BLOCK`: equal bits, whatever batches they came in.

    Args:
        extractor: moved to `device`.
        batches: uint8 tensors [B, 3, H, W].
        device: where it runs.
        precision: "fp32", or "bf16": faster where the processor has bf16 units, features differ by 1 to 2 %.
        rows: images in one pass on a GPU.

    Yields:
        Images, and what the extractor makes of them, on its device.

    Raises:
        UserError: features that are not finite.
    """
    device = torch.device(device)
    extractor = extractor.to(device).eval()
    on_cpu = device.type == "cpu"
    for images in _regroup(batches, CPU_BLOCK if on_cpu else rows):
        count = len(images)
        block = images[torch.arange(CPU_BLOCK).clamp_max(count - 1)] if on_cpu and count < CPU_BLOCK else images
        bf16 = precision == "bf16"
        exactly = nullcontext() if bf16 else whole_fp32()
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16), exactly:
            made = extractor(block.to(device))
            outputs = Outputs(*(None if x is None else x.float()[:count] for x in made))  # type: ignore[arg-type]
        finite = torch.isfinite(outputs.features).all(dim=1)
        if not bool(finite.all()):
            raise UserError(
                f"{extractor.name} gives non-finite features for {int((~finite).sum())} images; use --precision fp32 "
                "or check it."
            )
        yield images, outputs


def extract(
    extractor: FeatureExtractor,
    batches: Iterable[Tensor],
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> Features:
    """The features of all images of a stream, in order; see `run_extractor`. (`rcg.eval.measure` keeps less.)

    Raises:
        UserError: no images, or features that are not finite.
    """
    found = [outputs for _, outputs in run_extractor(extractor, batches, device=device, precision=precision)]
    if not found:
        raise UserError("There are no images to extract features from.")
    logits = [outputs.logits.cpu().numpy() for outputs in found if outputs.logits is not None]
    features = np.concatenate([outputs.features.cpu().numpy() for outputs in found])
    return Features(features, np.concatenate(logits) if logits else None)


def bf16_change(extractor: FeatureExtractor, images: Tensor, device: torch.device | str = "cpu") -> float:
    """How far bf16 moves the features of some images: the length of the difference, relative to that of the features."""
    exact, rough = (
        torch.cat([made.features for _, made in run_extractor(extractor, [images], device=device, precision=precision)])
        for precision in ("fp32", "bf16")
    )
    return float((rough - exact).norm() / exact.norm())
