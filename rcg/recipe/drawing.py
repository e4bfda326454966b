"""Drawing images of a pipeline into folders, as `rcg-sample` does, and choosing the scale of guidance by them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rcg.core.files import atomic_folder
from rcg.core.hardware import pick_bf16
from rcg.pipeline import RCGPipeline
from rcg.sampling.folder import SamplingFolder, draw_images

DRAWN_AT_ONCE = 64


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


def draw_folder(
    pipe: RCGPipeline,
    folder: Path,
    count: int,
    seed: int,
    guidance_scale: float,
    on_images: Callable[[int], None] = lambda count: None,
) -> None:
    """The first `count` images of a seed in a folder, as `rcg-sample` draws them; those that are there are kept.

    Args:
        pipe: where it is to compute.
        folder: new, or of an earlier call with the same pipeline, seed and scale.
        count, seed, guidance_scale: of the images.
        on_images: called with the number of images that are done, each time that there are more.

    Raises:
        UserError: the folder holds other things.
    """
    settings: dict[str, Any] = dict(pipe.settings(guidance_scale=guidance_scale))
    bf16 = pick_bf16("auto", pipe.device)
    images_depend_on = {
        "model": pipe.identity(),
        "seed": seed,
        "exact": False,
        "precision": "bf16" if bf16 else "fp32",
        "class_labels": [],
        "rounding": "round",
        **settings,
    }
    target = SamplingFolder(folder)
    with one_thread_each(pipe.device) as threads:

        def draw(indices: Sequence[int]) -> list[Image.Image]:
            precision = "bf16" if bf16 else "fp32"
            return draw_images(pipe, indices, seed, threads=threads, precision=precision, **settings)

        target.fill(
            count,
            images_depend_on,
            draw,
            model=str(folder),
            batch_size=DRAWN_AT_ONCE,
            resume=target.read() is not None,
            overwrite=False,
            on_images=on_images,
        )


def best_scale(distances: Mapping[str, float]) -> float:
    """The scale of guidance, written as text, whose distance is the least; the smaller one of equals."""
    return min(sorted(float(scale) for scale in distances), key=lambda scale: distances[f"{scale:g}"])


def take_over(images: Path, into: Path) -> None:
    """Let a folder begin with the images of another one, unless it is there already."""
    if not into.exists():
        with atomic_folder(into) as temporary:
            shutil.copytree(images, temporary, dirs_exist_ok=True)
