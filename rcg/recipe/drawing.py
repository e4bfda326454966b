"""Drawing images of a pipeline into folders, as `rcg-sample` does, and choosing the scale of guidance by them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from rcg.core.files import atomic_folder
from rcg.core.hardware import pick_bf16
from rcg.pipeline import RCGPipeline
from rcg.sampling.drawing import Drawing
from rcg.sampling.folder import SamplingFolder

DRAWN_AT_ONCE = 64


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
    bf16 = pick_bf16("auto", pipe.device)
    drawing = Drawing(pipe, seed, pipe.settings(guidance_scale=guidance_scale), precision="bf16" if bf16 else "fp32")
    target = SamplingFolder(folder)
    target.fill(
        count,
        drawing.depends_on(),
        drawing,
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
