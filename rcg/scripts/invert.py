"""`rcg-invert`: learn for every image the condition that makes a frozen generator draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rcg.core.schema import Count, OutFolder, Positive, Seed, ShareBelowOne, Size
from rcg.scripts._command import run_command


@dataclass
class Config:
    """Flags of rcg-invert."""

    data: str
    """A folder of images, or an embedded set: shapes[:…] or clothing[:…]."""
    model: str
    """Folder of a diffusers pipeline like Stable Diffusion 1 or 2, or of an RCG pipeline with an encoder (or its name in the
    box)."""
    out: OutFolder
    """Folder of the conditions. An inversion that was begun there is gone on with."""
    image_size: Size | None = None
    """Side in pixels at which Stable Diffusion inverts (and draws later). RCG pipelines have their own."""
    num_tokens: Size | None = None
    """Vectors of a condition of Stable Diffusion (default: 5). RCG pipelines have one representation."""
    init: Literal["encoder", "zero"] | None = None
    """Where representations begin: at the encoder's (the default), or at zero, for which no encoder is needed. Stable Diffusion
    begins at small random numbers."""
    steps: Count = 2000
    """Steps of Adam for each image; more of them go on with a finished inversion."""
    turn_steps: Count = 100
    """Steps that a batch of images is trained before the next one's turn; a killed run loses no more."""
    batch_size: Size = 50
    """Images trained together: a matter of memory and speed, but it stays once a step is kept. (An RCG pipeline's images draw their
    noise together, so that another size gives other conditions, as another --seed does.)"""
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


def run(config: Config) -> None:
    """Invert; see `rcg.inversion.invert.invert`."""
    from diffusers.utils import logging

    from rcg.core.hardware import own_device, pick_bf16
    from rcg.core.parts import Share
    from rcg.data.sources import open_source
    from rcg.inversion.invert import Inversion, invert
    from rcg.inversion.opening import open_frozen

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    device = own_device(config.device, Share.from_environment())
    generator = open_frozen(config.model, config.image_size, config.num_tokens, init=config.init)
    how = Inversion(
        steps=config.steps,
        turn=config.turn_steps,
        batch_size=config.batch_size,
        lr=config.lr,
        beta1=config.beta1,
        beta2=config.beta2,
        seed=config.seed,
    )
    table = invert(
        generator,
        open_source(config.data),
        config.out,
        how,
        model=config.model,
        device=device,
        bf16=pick_bf16(config.precision, device),
        checkpointing=config.gradient_checkpointing,
    )
    done, share = int((table.steps >= config.steps).sum()), Share.from_environment()
    if done < len(table):  # the last process to be done says that all is
        if share.rank == 0:
            print(f"{done} of {len(table)} images are inverted; other processes are still at work.")
        return
    print(f"{done} of {len(table)} images are inverted; their conditions are in {config.out}.")
    print(f"rcg-synthesize --from-inversion {config.out} --model {config.model} draws new images from them.")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rcg-invert`."""
    run_command(
        "rcg-invert",
        Config,
        run,
        "Learn for every image the condition that makes a frozen generator draw it.",
        argv,
    )


if __name__ == "__main__":
    main()
