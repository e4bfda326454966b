"""What may be added to a tokenizer's pixel error: a perceptual distance and a patch discriminator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg.core.errors import UserError


class FeatureMaps(Protocol):
    """A frozen network that shows its intermediate activations."""

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Images [B,3,H,W] in [0,1] -> maps [B,C,h,w], differentiable in the images."""
        ...


class ChosenMaps(nn.Module):
    """Some of the feature maps of an encoder whose `feature_maps` takes `indices`.

    Args:
        encoder: e.g. an SSLEncoder.
        indices: which maps, counted from 0, negative from the end.
    """

    def __init__(self, encoder: nn.Module, indices: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.indices = encoder, list(indices)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """See `FeatureMaps`."""
        try:
            return self.encoder.feature_maps(images, indices=self.indices)  # type: ignore[operator]
        except (AssertionError, IndexError):
            raise UserError(f"the perceptual encoder has no layers {self.indices}; choose smaller numbers.") from None


def perceptual_distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Mean over the layers of the squared distance of channel-normalised maps (LPIPS, arXiv 1801.03924, equation 1, w = 1).

    Args:
        ours, theirs: maps [B,C,h,w], one a layer, pairwise of one shape.

    Returns:
        scalar in [0, 4].
    """
    return torch.stack([squared.mean() for squared in _squared_differences(ours, theirs)]).mean()


def perceptual_distances(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """The `perceptual_distance` of each image by itself, [B]."""
    return torch.stack([squared.mean((1, 2)) for squared in _squared_differences(ours, theirs)]).mean(0)


def _squared_differences(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Iterator[Tensor]:
    """Of channel-normalised maps, [B,h,w] a layer."""
    for a, b in zip(ours, theirs, strict=True):
        difference = F.normalize(a.float(), dim=1, eps=1e-6) - F.normalize(b.float(), dim=1, eps=1e-6)
        yield difference.square().sum(1)


class PatchDiscriminator(nn.Module):
    """PatchGAN (arXiv 1611.07004): images [B,C,H,W] in [0,1] -> one logit for each patch [B,1,h,w].

    GroupNorm in place of the original's BatchNorm, so that a batch's samples do not mix and resuming is exact.

    Args:
        in_channels: channels of the images.
        width: channels of the first convolution, a multiple of 4; doubles with every further layer up to eight times.
        layers: strided convolutions; the patch grid has H / 2^layers - 2 rows.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.layers = layers
        parts: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = width
        for i in range(1, layers + 1):
            out = width * min(2**i, 8)
            stride = 2 if i < layers else 1
            parts += [nn.Conv2d(channels, out, 4, stride, 1, bias=False), nn.GroupNorm(8, out), nn.LeakyReLU(0.2)]
            channels = out
        self.net = nn.Sequential(*parts, nn.Conv2d(channels, 1, 4, 1, 1))

    def check_size(self, size: int) -> None:
        """Raise `UserError` if images of `size` pixels are too small for so many layers."""
        if size >> self.layers < 3:
            raise UserError(f"a discriminator of {self.layers} layers is too deep for {size} px; give it fewer layers.")

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images * 2 - 1)


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of mean max(0, 1 - real) and mean max(0, 1 + fake)."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def adaptive_weight(reference: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """The factor that makes both losses pull equally hard at the last layer (VQGAN, arXiv 2012.09841, equation 7).

    Args:
        reference: the reconstruction loss, scalar.
        adversarial: the generator's adversarial loss, scalar.
        last_layer: weights that both depend on.

    Returns:
        |d reference| / (|d adversarial| + 1e-4), detached, in [0, 1e4].
    """
    (a,) = torch.autograd.grad(reference, last_layer, retain_graph=True)
    (b,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (a.norm() / (b.norm() + 1e-4)).clamp(0, 1e4).detach()
