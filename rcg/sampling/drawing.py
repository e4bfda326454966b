"""Drawing the images of a seed, and what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image

from rcg.core.pictures import to_pil
from rcg.core.rng import sample_generators

Rounding = Literal["round", "truncate"]


@contextmanager
def one_thread_each(device: torch.device) -> Iterator[int]:
    """On a CPU: torch computes with one thread, and so many Python threads are to share the images; elsewhere 1."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield threads
    finally:
        if device.type == "cpu":
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class Drawing:
    """Numbers of images → the images of a seed; on a CPU each is computed by one core.

    Attributes:
        pipe: an `RCGPipeline`, where it is to compute.
        seed: from 0.
        settings: all of the pipeline's (`RCGPipeline.settings`).
        labels, rounding: see `draw_images`.
        exact, precision: arguments of the pipeline's call.
    """

    pipe: Any
    seed: int
    settings: Mapping[str, Any]
    labels: Sequence[int] = ()
    rounding: Rounding = "round"
    exact: bool = False
    precision: Literal["bf16", "fp32"] = "fp32"

    def depends_on(self) -> dict[str, Any]:
        """Everything that the images depend on, as JSON."""
        return {
            "model": self.pipe.identity(),
            "seed": self.seed,
            "exact": self.exact,
            "precision": self.precision,
            "class_labels": list(self.labels),
            "rounding": self.rounding,
            **self.settings,
        }

    def __call__(self, indices: Sequence[int]) -> list[Image.Image]:
        """The images of these numbers."""
        call = {**self.settings, "exact": self.exact, "precision": self.precision}
        with one_thread_each(self.pipe.device) as threads:
            return draw_images(self.pipe, indices, self.seed, self.labels, threads, self.rounding, **call)


def draw_images(
    pipe: Callable[..., Any],
    indices: Sequence[int],
    seed: int,
    labels: Sequence[int] = (),
    threads: int = 1,
    rounding: Rounding = "round",
    **settings: Any,
) -> list[Image.Image]:
    """The images `indices` of `seed`.

    Args:
        pipe: an `RCGPipeline`.
        indices: numbers of images, from 0.
        seed: from 0.
        labels: image i gets the (i modulo n)-th of these n; none draws each
            image's, uniformly, clusters as often as they occur.
        threads: on a CPU the work is shared out among so many Python threads; let each compute with one core
            (`torch.set_num_threads(1)`), as the rounding of torch's kernels depends on how many work on one image.
        rounding: see `rcg.core.pictures.to_pil`.
        settings: arguments of the pipeline's call.
    """

    def part(some: Sequence[int]) -> list[Image.Image]:
        result = pipe(
            generator=[sample_generators(seed, i, 1)[0] for i in some],
            class_labels=[labels[i % len(labels)] for i in some] if labels else None,
            output_type="pt",
            **settings,
        )
        return to_pil(result.images, rounding)

    size = -(-len(indices) // threads)
    parts = [indices[i : i + size] for i in range(0, len(indices), size)]
    if len(parts) == 1:
        return part(parts[0])
    with ThreadPoolExecutor(len(parts)) as pool:
        return [image for images in pool.map(part, parts) for image in images]
