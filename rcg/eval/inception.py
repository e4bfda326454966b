"""The Inception-v3 of FID (2015-12-05, TensorFlow-like resize to 299): whole, or up to Mixed_6e for FID-768.

Built from torch-fidelity's blocks under its key names, so that no random layer has to stand in for weights a file lacks.
"""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as tf_inception

from rcg.core.errors import UserError
from rcg.core.files import atomic_file, model_hash
from rcg.eval.features import AT_HAND, FeatureExtractor, Outputs, load_exactly

OFFLINE_TIMEOUT = 8.0  # seconds to wait for a server before calling it unreachable
_Conv, _A, _B, _C = (getattr(tf_inception, n) for n in ("BasicConv2d", "InceptionA", "InceptionB", "InceptionC"))
TAIL = ("Mixed_7a.", "Mixed_7b.", "Mixed_7c.", "fc.")  # what lies after Mixed_6e
SIZE = 299
SPATIAL_CHANNELS = 7
SPATIAL_DIM = SPATIAL_CHANNELS * 17 * 17


def resize_like_tensorflow(images: Tensor, size: int) -> Tensor:
    """Bilinear without antialias, corners not aligned, as TensorFlow 1 does it for FID; bit for bit torch-fidelity's.

    Args:
        images: float [B, C, H, W].
        size: of the square.
    """
    for axis in (3, 2):  # along rows first: the order decides the last bits
        length = images.shape[axis]
        place = torch.arange(size, dtype=images.dtype, device=images.device) * torch.tensor(length / size).to(images)
        low = place.long()
        share = (place - low).view(-1, *[1] * (3 - axis))
        start = images.index_select(axis, low)
        images = start + (images.index_select(axis, (low + 1).clamp_max(length - 1)) - start) * share
    return images


class InceptionV3(nn.Module):
    """The FID network out of torch-fidelity's blocks, with its key names; `tail=False` ends it after Mixed_6e."""

    def __init__(self, tail: bool) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, kernel_size=3)
        self.Mixed_5b = _A(192, pool_features=32)
        self.Mixed_5c = _A(256, pool_features=64)
        self.Mixed_5d = _A(288, pool_features=64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b = _C(768, channels_7x7=128)
        self.Mixed_6c = _C(768, channels_7x7=160)
        self.Mixed_6d = _C(768, channels_7x7=160)
        self.Mixed_6e = _C(768, channels_7x7=192)
        if tail:
            self.Mixed_7a = tf_inception.InceptionD(768)
            self.Mixed_7b = tf_inception.InceptionE_1(1280)
            self.Mixed_7c = tf_inception.InceptionE_2(2048)
            self.fc = nn.Linear(2048, 1008)
        self.tail = tail

    def forward(self, x: Tensor) -> Outputs:
        """x [B, 3, 299, 299] in [-1, 1) → features [B, 768], or [B, 2048] and logits without bias [B, 1008]; spatial ones."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, kernel_size=3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, kernel_size=3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self._spatial(x)
        x = self.Mixed_6e(self.Mixed_6d(x))
        if not self.tail:
            return Outputs(x.float().mean((2, 3)), None, spatial)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        pooled = x.float().mean((2, 3))
        with torch.autocast(x.device.type, enabled=False):
            return Outputs(pooled, pooled @ self.fc.weight.T, spatial)

    def _spatial(self, x: Tensor) -> Tensor:
        """The features of sFID [B, 17·17·7], channels last: ADM's evaluator takes the first 7 of `mixed_6/conv`, which is
        the 1×1 branch of Mixed_6d. Only these are computed here."""
        block = self.Mixed_6d.branch1x1
        if block.conv.bias is None:  # BatchNorm is not folded into it yet
            x = block(x)[:, :SPATIAL_CHANNELS]
        else:
            x = F.conv2d(x, block.conv.weight[:SPATIAL_CHANNELS], block.conv.bias[:SPATIAL_CHANNELS]).relu()
        return x.permute(0, 2, 3, 1).flatten(1)

    def fold_batch_norm(self) -> None:
        """Put every BatchNorm into its convolution (inference only): equal up to rounding, nearly twice as fast on CPU."""
        for block in self.modules():
            if isinstance(block, _Conv):
                block.conv = nn.utils.fuse_conv_bn_eval(block.conv.eval(), block.bn.eval())
                block.bn = nn.Identity()


def inception_state(state: Mapping[str, Tensor], tail: bool, what: str) -> dict[str, Tensor]:
    """Account for every key of a torch-fidelity Inception file: used, after Mixed_6e and not wanted, or an error.

    Raises:
        UserError: a key is missing or unknown; or the file ends at Mixed_6e and the whole network is wanted.
    """
    after = [k for k in state if k.startswith(TAIL)]
    if tail and not after:
        raise UserError(
            f"{what}: the weights file holds the network only up to Mixed_6e, so there is no FID or Inception Score "
            "in it; use --extractor inception-768 with it, which reports FID-768."
        )
    return dict(state) if tail else {k: v for k, v in state.items() if k not in after}


class InceptionExtractor(FeatureExtractor):
    """`inception` (2048 features, logits without bias as torch-fidelity's IS takes them) or `inception-768`.

    Both give the spatial features of sFID. Equal to torch-fidelity's `FeatureExtractorInceptionV3` up to fp32 rounding (relative 1e-6).

    Args:
        state: weights under torch-fidelity's names.
        full: the whole network; otherwise it ends after Mixed_6e.
    """

    def __init__(self, state: Mapping[str, Tensor], full: bool) -> None:
        super().__init__()
        self.name = "inception" if full else "inception-768"
        self.dim = 2048 if full else 768
        self.has_logits = full
        self.spatial_dim = SPATIAL_DIM
        self.resize = f"to {SIZE} px, bilinear without antialias, as TensorFlow 1 does it"
        with torch.device("meta"):  # no time spent on initial values
            network = InceptionV3(tail=full)
        load_exactly(network, inception_state(state, full, self.name), self.name)
        self.weights_hash = model_hash(network.float())
        network.eval().requires_grad_(False).fold_batch_norm()
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Outputs:
        """See `FeatureExtractor.forward`."""
        x = (resize_like_tensorflow(images.float(), SIZE) - 128) / 128
        outputs: Outputs = self.network(x.contiguous(memory_format=torch.channels_last))
        return outputs


def _reachable(url: str) -> bool:
    if any(
        os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in ("HF_HUB_OFFLINE", "RCG_OFFLINE")
    ):
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=OFFLINE_TIMEOUT):
            return True
    except (OSError, ValueError):
        return False


def inception_weights(url: str = tf_inception.URL_INCEPTION_V3) -> Path:
    """torch-fidelity's Inception file in torch's hub cache, downloaded on first use.

    Raises:
        UserError: it is not in the cache and cannot be downloaded.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if path.is_file():
        return path
    sentence = (
        f"The Inception weights of FID are not in {path.parent} and cannot be downloaded from {url}; "
        f"give the file with --extractor-weights, or use another extractor. {AT_HAND}"
    )
    if not _reachable(url):
        raise UserError(sentence)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30.0)
    try:
        with atomic_file(path) as temporary:
            torch.hub.download_url_to_file(url, str(temporary), hash_prefix=path.stem.rsplit("-", 1)[1])
    except (urllib.error.URLError, TimeoutError, ConnectionError, RuntimeError):
        raise UserError(sentence) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return path
