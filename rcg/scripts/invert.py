"""`rcg-invert`: learn for every image the condition that makes a frozen generator draw it; draw new images from these."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rcg.core.errors import UserError
from rcg.core.schema import Count, CountOrZero, NonNegative, Positive, Seed, Share, ShareBelowOne, Size
from rcg.scripts._command import run_command

if TYPE_CHECKING:
    from rcg.data.image_source import ImageSource
    from rcg.inversion.choices import Chooser
    from rcg.inversion.frozen import FrozenGenerator
    from rcg.inversion.table import ConditionTable


@dataclass
class DrawSettings:
    """How --draw makes images."""

    draw: CountOrZero = 0
    """Images to draw from the conditions when they are learned, as many of each class; several of one condition where there
    are fewer of these."""
    out_images: Path | None = None
    """Folder for them: a sub-folder for each class, and images.jsonl, which says what each was made from. A set that was
    begun there with the same settings is gone on with."""
    noise: tuple[NonNegative, ...] = (0.1,)
    """Deviation of the noise added to a condition; each image draws one of these."""
    interpolation: tuple[Share, ...] = (0.0,)
    """Share of a partner's condition, another image's, mixed in; each image draws one of these."""
    guidance_scale: tuple[NonNegative, ...] = (3.0,)
    """Guidance, 1.0 is off; each image draws one of these."""
    partners: Literal["class", "any"] = "class"
    """Where partners come from: images of the same class, or any. Never the image itself."""
    unconditional: Literal["mean", "empty"] = "mean"
    """What guidance of a Stable Diffusion leads away from: the mean of the learned conditions, or the empty prompt (needs
    the package transformers)."""
    draw_steps: Size | None = None
    """Steps of the sampler (default: 100 of DDIM, or the pipeline's own)."""
    eta: Share | None = None
    """Noise that DDIM adds at each step of a Stable Diffusion (default: 1.0). RCG pipelines have samplers of their own."""
    draw_seed: Seed = 0
    """Seed of all choices and of the images."""
    draw_batch_size: Size = 32
    """Images drawn at a time."""


@dataclass
class Config:
    """Flags of rcg-invert."""

    data: str
    """A folder of images, or an embedded set: shapes[:…] or clothing[:…]."""
    model: str
    """Folder of a diffusers pipeline like Stable Diffusion 1 or 2, or of an RCG pipeline with an encoder (or its name in the
    box)."""
    out: Path
    """Folder of the conditions. An inversion that was begun there is gone on with."""
    image_size: Size | None = None
    """Side in pixels at which Stable Diffusion inverts and draws. RCG pipelines have their own."""
    num_tokens: Size | None = None
    """Vectors of a condition of Stable Diffusion (default: 5). RCG pipelines have one representation."""
    steps: Count = 2000
    """Steps of Adam for each image; more of them go on with a finished inversion."""
    turn_steps: Count = 100
    """Steps that a batch of images is trained before the next one's turn; a killed run loses no more."""
    batch_size: Size = 50
    """Images trained together. They are independent: it is a matter of memory and speed."""
    lr: Positive | None = None
    """Learning rate, constant (default: 0.03 for Stable Diffusion, 0.01 for representations)."""
    beta1: ShareBelowOne = 0.9
    """Adam beta 1."""
    beta2: ShareBelowOne = 0.999
    """Adam beta 2."""
    gradient_checkpointing: bool = False
    """Compute parts of the forward pass twice instead of keeping them: slower, with much less memory."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the generator; auto is bf16 where the hardware multiplies it faster."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; with several processes each takes the GPU of its local rank."""
    seed: Seed = 0
    """Seed of beginnings, times and noise."""
    drawing: DrawSettings = field(default_factory=DrawSettings)
    """Afterwards."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        chosen = self.drawing
        if (chosen.draw > 0) != (chosen.out_images is not None):
            raise UserError("--draw and --out-images belong together; give both, or neither.")
        for name in ("noise", "interpolation", "guidance_scale"):
            if not getattr(chosen, name):
                raise UserError(f"--{name.replace('_', '-')} is an empty list; give one value or more.")


def _open(config: Config) -> FrozenGenerator:
    from diffusers.utils import logging

    from rcg.core.components import read_config
    from rcg.core.shipped import local_folder

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    folder = local_folder(config.model) or Path(config.model)
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"--model {config.model} is no local pipeline (it has no model_index.json); give the folder of one."
        )
    drawing = config.drawing
    if read_config(folder / "model_index.json").get("_class_name") == "RCGPipeline":
        from rcg.inversion.representations import RepresentationGenerator
        from rcg.pipeline import RCGPipeline

        for name in ("image_size", "num_tokens"):
            if getattr(config, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} has no effect with an RCG pipeline, which has its own; leave it out.")
        if drawing.unconditional == "empty":
            raise UserError(
                "--unconditional empty has no effect with an RCG pipeline, which takes no text; leave it out."
            )
        if drawing.eta is not None:
            raise UserError("--eta has no effect with an RCG pipeline, which has a sampler of its own; leave it out.")
        pipe = RCGPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        steps = drawing.draw_steps
        return RepresentationGenerator(pipe, {} if steps is None else {"num_inference_steps": steps})
    from rcg.inversion.stable_diffusion import StableDiffusion

    if config.image_size is None:
        raise UserError("nothing says at what size to invert; add --image-size.")
    eta = 1.0 if drawing.eta is None else drawing.eta
    return StableDiffusion(folder, config.image_size, config.num_tokens or 5, steps=drawing.draw_steps or 100, eta=eta)


def run(config: Config) -> None:
    """Invert, then draw; see `rcg.inversion.invert.invert` and `rcg.inversion.engine.make_set`."""
    import torch

    from rcg.core.hardware import pick_bf16, pick_device
    from rcg.data.sources import open_source
    from rcg.inversion.invert import Inversion, invert
    from rcg.inversion.table import share_from_environment

    rank, world = share_from_environment()
    device = pick_device(config.device)
    if device.type == "cuda" and world > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    generator = _open(config)
    how = Inversion(
        steps=config.steps,
        turn=config.turn_steps,
        batch_size=config.batch_size,
        lr=config.lr,
        beta1=config.beta1,
        beta2=config.beta2,
        seed=config.seed,
    )
    source = open_source(config.data)
    chooser = _prepare_drawing(config, generator, source)  # what cannot be drawn is said before hours are spent
    table = invert(
        generator,
        source,
        config.out,
        how,
        model=config.model,
        device=device,
        bf16=pick_bf16(config.precision, device),
        checkpointing=config.gradient_checkpointing,
    )
    done = int((table.steps >= config.steps).sum())
    print(f"{done} of {len(table)} images are inverted; their conditions are in {config.out}.")
    if chooser is not None:
        _draw(config, generator, table, chooser, (rank, world))


def _prepare_drawing(config: Config, generator: FrozenGenerator, source: ImageSource) -> Chooser | None:
    """What chooses the conditions to draw from, and the empty prompt where it is wanted; None without --draw."""
    from rcg.inversion.choices import Chooser, Variation
    from rcg.inversion.stable_diffusion import StableDiffusion

    chosen = config.drawing
    if not chosen.draw:
        default = DrawSettings()
        for name in (each.name for each in fields(chosen)):
            if getattr(chosen, name) != getattr(default, name):
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} has no effect without --draw; add --draw and --out-images, or leave it out.")
        return None
    if isinstance(generator, StableDiffusion) and chosen.unconditional == "empty":
        generator.unconditional = generator.empty_prompt()
    variation = Variation(chosen.noise, chosen.interpolation, chosen.guidance_scale, chosen.partners)
    return Chooser(len(source), source.labels, variation, chosen.draw_seed)


def _draw(
    config: Config, generator: FrozenGenerator, table: ConditionTable, chooser: Chooser, share: tuple[int, int]
) -> None:
    import torch

    from rcg.core.files import claimed, sweep
    from rcg.inversion.engine import FromTable, balanced, make_set
    from rcg.inversion.invert import PATIENCE_S
    from rcg.inversion.stable_diffusion import StableDiffusion

    chosen = config.drawing
    assert chosen.out_images is not None
    table.require_trained(config.steps, PATIENCE_S if share[1] > 1 else 0.0)
    identity: dict[str, Any] = {"model": table.manifest["model_hash"]}
    if isinstance(generator, StableDiffusion):
        if generator.unconditional is None:
            generator.unconditional = torch.from_numpy(table.mean())
        identity["unconditional"] = chosen.unconditional
    with claimed(chosen.out_images, shared=share[1] > 1):
        records = make_set(
            generator,
            FromTable(table.conditions, table.ids, table.fingerprint(), chooser),
            balanced(chosen.draw, chooser.classes),
            chosen.out_images,
            identity=" ".join(f"{k} {v}" for k, v in identity.items()),
            class_names=table.manifest["class_names"],
            batch_size=chosen.draw_batch_size,
            share=share,
        )
        if share[1] == 1:
            sweep(chosen.out_images)
    print(f"{len(records)} images are in {chosen.out_images}.")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rcg-invert`."""
    run_command(
        "rcg-invert",
        Config,
        run,
        "Learn for every image the condition that makes a frozen generator draw it, and draw new images from these.",
        argv,
    )


if __name__ == "__main__":
    main()
