"""rcg-convert: published weight files → a folder that this library loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rcg.core.errors import UserError
from rcg.core.schema import Depth
from rcg.scripts._command import SamplingDefaults, check_out_folder, run_command

REPORT = "conversion.json"


@dataclass
class Config:
    """Flags of rcg-convert."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Published files, in any order. With a MAGE file among them they become a pipeline; any other one, a component."""
    out: Path
    """Folder for the pipeline or component."""
    size: Literal["b", "l", "h"] | None = None
    """Refuse a MAGE of another size (the presets rcg-b and rcg-l set it)."""
    weights: Literal["ema", "raw"] = "ema"
    """Of an RDM: the moving average, which the paper samples with, or the raw weights of the last step."""
    head: Literal["projection", "text", "none"] = "projection"
    """Of an encoder: its self-supervised projection head, StableRep+'s projection to text, or none (the class token)."""
    rdm_scheduler: Literal["paper", "fast"] = "paper"
    """The RDM's default sampler: the paper's DDIM (250 steps), or the solver of few steps that training exports."""
    encoder_num_heads: Depth | None = None
    """Attention heads of an encoder of unpublished width (no tensor's shape tells)."""
    generator_num_heads: Depth | None = None
    """Attention heads of a MAGE of unpublished width, encoder half."""
    generator_decoder_num_heads: Depth | None = None
    """Attention heads of a MAGE's decoder half, if not the published 16."""
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    """Settings that the pipeline is to sample with."""
    overwrite: bool = False
    """Replace the pipeline or component that --out holds."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if not self.files:
            raise UserError("give the files to convert.")
        check_out_folder(self.out, self.overwrite, ("model_index.json", "config.json"))


def run(config: Config) -> None:
    """Read, check, save in one move, and say what became of every key."""
    from rcg import __version__
    from rcg.core.files import atomic_folder, write_json
    from rcg.published import convert as c

    options = c.Options(
        weights=config.weights,
        head=config.head,
        encoder_num_heads=config.encoder_num_heads,
        generator_num_heads=config.generator_num_heads,
        generator_decoder_num_heads=config.generator_decoder_num_heads,
        rdm_scheduler=config.rdm_scheduler,
    )
    files = [c.open_file(path) for path in config.files]
    first, sampling, notes = files[0], config.sampling.given(), list[str]()
    pipe = None
    if len(files) > 1 or first.kind == "mage":
        done = c.convert_pipeline(files, options, sampling=sampling, size=config.size)
        pipe, parts, sources, notes = done.pipe, done.parts, done.sources, done.notes
    elif sampling or config.size:
        raise UserError(
            f"{first.path} is a single {first.component}, which has no sampling settings and no size; add the MAGE file, "
            "or leave --config and these flags out."
        )
    else:
        parts, sources = {first.component: c.convert(first, options)}, {first.component: first.path}
    for name, part in parts.items():
        print(c.summary_of(name, part, sources[name]))
    for note in notes:
        print(f"note: {note}")
    report = {
        "rcg_version": __version__,
        "files": [c.fingerprint(path) for path in config.files],
        "components": {name: {"file": sources[name].name, **c.report_of(part)} for name, part in parts.items()},
        "notes": notes,
    }
    with atomic_folder(config.out) as temporary:
        if pipe is not None:
            pipe.save_pretrained(temporary)
        else:
            c.save_component(parts[first.component], temporary, options)
        write_json(temporary / REPORT, report)
    what = first.component if pipe is None else "pipeline"
    print(f"The {what} is in {config.out}; the account of every key is in {config.out / REPORT}.")
    if pipe is not None and (pipe.rdm is not None or pipe.image_generator.config.condition != "representation"):
        print(f"Draw from it with: rcg-sample --model {config.out} --out samples")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command("rcg-convert", Config, run, "Turn published weight files into a folder that this library loads.", argv)


if __name__ == "__main__":
    main()
