"""Opening a frozen generator by the folder that it lies in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rcg.core.components import read_config
from rcg.core.errors import UserError
from rcg.core.schema import flag_of
from rcg.core.shipped import local_folder
from rcg.inversion.frozen import FrozenGenerator
from rcg.inversion.representations import Init, RepresentationGenerator
from rcg.inversion.stable_diffusion import StableDiffusion
from rcg.pipeline import RCGPipeline


def open_frozen(
    model: str,
    image_size: int | None = None,
    num_tokens: int | None = None,
    *,
    steps: int | None = None,
    eta: float | None = None,
    init: Init | None = None,
) -> FrozenGenerator:
    """The generator in a folder of a diffusers pipeline like Stable Diffusion 1 or 2, or of an RCG pipeline.

    Args:
        model: the folder, or a name in the box.
        image_size, num_tokens, eta: of Stable Diffusion alone, see `StableDiffusion`.
        init: of an RCG pipeline's representations, see `RepresentationGenerator`.
        steps: of drawing; None is `StableDiffusion`'s, or the RCG pipeline's own.

    Raises:
        UserError: no such folder, a pipeline that cannot be inverted, or an argument that it does not know.
    """
    folder = local_folder(model) or Path(model)
    if not (folder / "model_index.json").is_file():
        raise UserError(f"--model {model} is no local pipeline (it has no model_index.json); give the folder of one.")
    if read_config(folder / "model_index.json").get("_class_name") != "RCGPipeline":
        if image_size is None:
            raise UserError("nothing says at what size to invert; add --image-size.")
        if init is not None:
            raise UserError("--init has no effect with Stable Diffusion, which begins at random; leave it out.")
        given: dict[str, Any] = {"num_tokens": num_tokens, "steps": steps, "eta": eta}
        return StableDiffusion(folder, image_size, **{k: v for k, v in given.items() if v is not None})
    for name, value in {"image_size": image_size, "num_tokens": num_tokens, "eta": eta}.items():
        if value is not None:
            raise UserError(f"{flag_of(name)} has no effect with an RCG pipeline, which has its own; leave it out.")
    pipe = RCGPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return RepresentationGenerator(pipe, {} if steps is None else {"num_inference_steps": steps}, init or "encoder")
