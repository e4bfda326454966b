"""What can be seen of a pipeline besides its samples: the way between two images, and what it makes of real ones."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from PIL import Image

from rcg.core.pictures import to_pil
from rcg.core.rng import derive_seed, sample_generators
from rcg.eval.images import Pipeline, PipelineImages

STRIPS, STEPS = 3, 9
RECONSTRUCTED, DRAWS = 8, 2


class Explorable(Pipeline, Protocol):
    """What an `RCGPipeline` is to a report."""

    def reconstruct(self, images: Any, **arguments: Any) -> Any:
        """New images from the representations of given ones."""
        ...

    def interpolate(self, a: Any, b: Any, **arguments: Any) -> Any:
        """Images along the way between two representations."""
        ...


def _of_images(images: PipelineImages) -> dict[str, Any]:
    """The settings that reconstruction and interpolation take."""
    return {k: v for k, v in images.settings.items() if not k.startswith("rdm_")}


def interpolations(pipeline: Explorable, images: PipelineImages) -> list[list[Image.Image]]:
    """Strips of 9 images each, from one sampled representation to the next, all of a strip from the same noise.

    Args:
        pipeline: as `images` have it.
        images: of the pipeline, for settings and seed.

    Raises:
        UserError: its image generator takes no representations.
    """
    made = pipeline(generator=sample_generators(images.seed, 0, 2 * STRIPS), output_type="pt", **images.settings)
    ends = made.representations
    strips = []
    for i in range(STRIPS):
        a, b = (torch.zeros(1), torch.zeros(1)) if ends is None else (ends[2 * i], ends[2 * i + 1])
        generator = torch.Generator().manual_seed(derive_seed(images.seed, i, 9))
        found = pipeline.interpolate(a, b, num=STEPS, generator=generator, output_type="pt", **_of_images(images))
        strips.append(to_pil(found.images))
    return strips


def reconstructions(
    pipeline: Explorable, images: PipelineImages, real: torch.Tensor
) -> list[tuple[Image.Image, list[Image.Image]]]:
    """Real images, each with two that the pipeline makes of its representation.

    Args:
        pipeline: as `images` have it.
        images: of the pipeline, for settings and seed.
        real: uint8 [B, 3, H, W].

    Raises:
        UserError: there is no encoder, or the image generator takes no representations.
    """
    drawn = []
    for draw in range(DRAWS):
        generators = sample_generators(derive_seed(images.seed, draw, 8), 0, len(real))
        made = pipeline.reconstruct(real.float() / 255, generator=generators, output_type="pt", **_of_images(images))
        drawn.append(to_pil(made.images))
    return [(picture, list(made)) for picture, *made in zip(to_pil(real), *drawn, strict=True)]
