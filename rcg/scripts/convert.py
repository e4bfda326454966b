"""rcg-convert: published weight files → a folder that this library loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rcg.core.errors import UserError
from rcg.core.schema import OutFolder
from rcg.published.options import Options
from rcg.scripts._command import SamplingSettings, check_out_folder, run_command


@dataclass
class Config:
    """Flags of rcg-convert."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Published files, in any order. With a MAGE, LDM or ADM file among them they become a pipeline; any other one, a
    component."""
    out: OutFolder
    """Folder for the pipeline or component."""
    size: Literal["b", "l", "h"] | None = None
    """Refuse a MAGE of another size (the presets rcg-b and rcg-l set it)."""
    reading: Options = field(default_factory=Options)
    """How files are read where they leave a choice."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """Settings to store in the pipeline, for calls that do not give their own."""
    overwrite: bool = False
    """Replace the pipeline or component that --out holds."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if not self.files:
            raise UserError("give the files to convert.")
        check_out_folder(self.out, self.overwrite, ("model_index.json", "config.json"))


def run(config: Config) -> None:
    """Read, check, save in one move, and say what became of every key."""
    from rcg.published.convert import REPORT, convert_files

    done = convert_files(config.files, config.reading, sampling=config.sampling.given(), size=config.size)
    print(done.summary())
    done.save(config.out)
    pipe = done.pipe
    what = "pipeline" if pipe is not None else next(iter(done.parts))
    print(f"The {what} is in {config.out}; the account of every key is in {config.out / REPORT}.")
    if pipe is not None and (pipe.rdm is not None or pipe.generator.condition != "representation"):
        print(f"Draw from it with: rcg-sample --model {config.out} --out samples")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command("rcg-convert", Config, run, "Turn published weight files into a folder that this library loads.", argv)


if __name__ == "__main__":
    main()
