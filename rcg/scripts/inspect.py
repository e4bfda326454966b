"""rcg-inspect: what is this checkpoint, and what to run next?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rcg.scripts._command import run_command


@dataclass
class Config:
    """Flags of rcg-inspect."""

    path: Annotated[Path, tyro.conf.Positional]
    """A weight file (published, or of a finished stage), a folder (component, pipeline, cache or training run), or the name
    of a model in the box (rcg/cifar10)."""
    json: bool = False
    """Print JSON."""


def run(config: Config) -> None:
    """Look, and print."""
    from rcg.core.shipped import local_folder
    from rcg.published.inspection import as_json, inspect_path

    found = inspect_path(local_folder(config.path) or config.path)
    print(as_json(found) if config.json else found.text())


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command("rcg-inspect", Config, run, "Say what a checkpoint is and what to run next.", argv)


if __name__ == "__main__":
    main()
