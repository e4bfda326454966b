"""`rcg-train`: one command from a folder of images to a scored pipeline, within a time budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rcg.recipe.wishes import Wishes
from rcg.scripts._command import run_command


@dataclass
class Config(Wishes):
    """Flags of rcg-train."""


def run(config: Config) -> None:
    """See `rcg.recipe.run.train_pipeline`."""
    from diffusers.utils import logging

    from rcg.recipe.run import train_pipeline

    logging.disable_progress_bar()
    train_pipeline(config)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rcg-train`."""
    run_command(
        "rcg-train",
        Config,
        run,
        "Train everything on a folder of images within a time budget: look at them, measure this machine, say the plan, "
        "train, draw, score, and leave a pipeline and a page about it.",
        argv,
    )


if __name__ == "__main__":
    main()
