"""`rcg-invert`: learn for every image the condition that makes a frozen generator draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rcg.core.schema import OutFolder, Size
from rcg.inversion.settings import Inversion
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
    how: Inversion = field(default_factory=Inversion)
    """The training of conditions."""
    gradient_checkpointing: bool = False
    """Compute parts of the forward pass twice instead of keeping them: slower, with much less memory."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the generator; auto is bf16 where the hardware multiplies it faster."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; with several processes each takes the GPU of its local rank."""


def run(config: Config) -> None:
    """Invert; see `rcg.inversion.invert.invert`."""
    from diffusers.utils import logging

    from rcg.core.hardware import own_device, pick_bf16
    from rcg.core.parts import Share
    from rcg.data.sources import open_source
    from rcg.inversion.invert import invert
    from rcg.inversion.opening import open_frozen

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    device = own_device(config.device, Share.from_environment())
    generator = open_frozen(config.model, config.image_size, config.num_tokens, init=config.init)
    table = invert(
        generator,
        open_source(config.data),
        config.out,
        config.how,
        model=config.model,
        device=device,
        bf16=pick_bf16(config.precision, device),
        checkpointing=config.gradient_checkpointing,
    )
    done, share = int((table.steps >= config.how.steps).sum()), Share.from_environment()
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
