"""`rcg-check`: are this data, and this tokenizer, encoder or pipeline, fit for the purpose?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rcg.core.errors import UserError
from rcg.core.schema import OutFile, Range, Seed, Size, flag_of
from rcg.scripts._command import flags, run_command


@dataclass
class Config:
    """Flags of rcg-check."""

    data: str
    """A folder of images, shards, a zip archive or a table of them, or an embedded set (shapes, clothing)."""
    model: tuple[str, ...] = ()
    """Folder of a pipeline, of which each part is checked, or of a tokenizer or an encoder, or one of each; or the name of a
    pipeline in the box (rcg/cifar10). Without one, only the data is looked at."""
    num_images: Annotated[int, Range(8, 10**6)] = 2000
    """Images that models look at, drawn by the seed."""
    image_size: Size | None = None
    """Frame images to squares of this many pixels. Default: as they are, or the model's own size where they differ."""
    extractor: str | None = None
    """In whose features reconstructions are compared: encoder (the one among --model, the default if there is one),
    encoder:DIR, inception, inception-768, dinov2, timm:NAME[:FILE]."""
    extractor_weights: Path | None = None
    """The extractor's weights file."""
    seed: Seed = 0
    """Of the images, of the split that probes are tested on, and of what a pipeline draws."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models compute."""
    json: OutFile | None = None
    """Write all of it to this file."""

    def validate(self) -> None:
        """Raise a UserError for what cannot be, before anything is loaded."""
        if self.model:
            return
        for name in ("num_images", "image_size", "extractor", "extractor_weights"):
            if getattr(self, name) != getattr(Config, name):
                flag = flag_of(name)
                raise UserError(f"{flag} is for what --model names; give that, or leave {flag} out.")


def run(config: Config) -> None:
    """Check, print and write; see `rcg.check.run.check`."""
    import textwrap

    from diffusers.utils import logging

    from rcg.check.findings import advice, as_json, in_lines
    from rcg.check.run import check
    from rcg.core.files import write_json
    from rcg.eval.reports import versions

    logging.disable_progress_bar()
    parts = check(
        config.data,
        config.model,
        num_images=config.num_images,
        image_size=config.image_size,
        extractor=config.extractor,
        extractor_weights=config.extractor_weights,
        seed=config.seed,
        device=config.device,
        say=lambda sentence: print(sentence, flush=True),
    )
    print("\n".join(["", *in_lines(parts)]))
    print(textwrap.fill(advice(parts), 110))
    if config.json is not None:
        write_json(config.json, as_json(parts) | {"config": flags(config), "versions": versions()})
        print(f"\nWritten to {config.json}.")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(
        "rcg-check",
        Config,
        run,
        "Is this data, and this tokenizer, encoder or pipeline, fit for the purpose? About a minute, before hours are spent.",
        argv,
    )


if __name__ == "__main__":
    main()
