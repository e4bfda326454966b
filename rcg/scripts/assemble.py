"""rcg-assemble: put finished stages together to a pipeline folder.

Instead of a stage's folder, that of a pipeline or its name in the box gives the pipeline's own: `--encoder rcg/cifar10`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcg.core.errors import UserError
from rcg.core.schema import OutFolder
from rcg.scripts._command import SamplingSettings, check_out_folder, run_command


@dataclass
class Config:
    """Flags of rcg-assemble."""

    generator: Path
    """Folder of the image generator (rcg-train-generator)."""
    out: OutFolder
    """Folder for the pipeline."""
    tokenizer: Path | None = None
    """Folder of the tokenizer that the generator was trained with (rcg-train-tokenizer), if there is one."""
    rdm: Path | None = None
    """Folder of the representation diffusion model (rcg-train-rdm); leave it out for generators without representations."""
    encoder: Path | None = None
    """Folder of the encoder, or of a pipeline that has it, or a name in the box (rcg/cifar10); only reconstruction and
    interpolation of images need it."""
    guiding_model: Path | None = None
    """Folder of a weaker image generator (smaller, or trained for less long), or an earlier checkpoint of this one
    (OUT/training/checkpoints/step-…): guidance is then away from it, and as always off unless a --guidance-scale is given, here
    or when sampling."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """Settings to store in the pipeline, for calls that do not give their own."""
    half: bool = False
    """Store the weights as float16, in half the space; they are float32 again, rounded, when they are loaded."""
    overwrite: bool = False
    """Replace the pipeline that --out holds."""

    def validate(self) -> None:
        """Raise `UserError` when `out` holds something that may not be replaced."""
        check_out_folder(self.out, self.overwrite, ("model_index.json",))


def run(config: Config) -> None:
    """Load the stages, which checks them, and save the pipeline in one move."""
    from rcg.core.components import load_beside
    from rcg.core.files import atomic_folder
    from rcg.data.provenance import check_together
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.image_gen.families import TOKENIZERS
    from rcg.image_gen.tokenizers.codec import codec_of
    from rcg.image_gen.train import load_earlier
    from rcg.pipeline import RCGPipeline
    from rcg.training.checkpoints import run_of

    guide = config.guiding_model  # its folder
    guiding_model: Any = guide
    if guide is not None and (run_of_guide := run_of(guide)) is not None:
        guiding_model, guide = load_earlier(guide), run_of_guide
    sampling = config.sampling.given()
    pipe = RCGPipeline.from_stages(
        config.generator, config.tokenizer, config.rdm, config.encoder, guiding_model, sampling
    )
    by_representation = pipe.generator.condition == "representation"
    if by_representation and config.rdm is None:
        raise UserError(
            f"{config.generator} was trained on representations and needs an RDM to draw them; add --rdm DIR."
        )
    generators = list(filter(None, (config.generator, guide)))
    if config.tokenizer is not None:
        of_codes = {stage: load_beside(TOKENIZERS, stage) for stage in generators}
        check_together(of_codes | {config.tokenizer: pipe.tokenizer}, codec_of(pipe.tokenizer).field)
    if by_representation:
        places = {stage: load_beside((SSLEncoder,), stage) for stage in filter(None, (*generators, config.rdm))}
        if config.encoder is not None:
            places[config.encoder] = pipe.encoder
        check_together(places, "representations")
    with atomic_folder(config.out) as temporary:
        pipe.save_pretrained(temporary, half=config.half)
    print(f"The pipeline is in {config.out}; draw from it with: rcg-sample --model {config.out} --out samples")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(
        "rcg-assemble",
        Config,
        run,
        "Put finished stages together to a pipeline. A stage may also be taken from a pipeline: give that one's folder, or "
        "its name in the box.",
        argv,
    )


if __name__ == "__main__":
    main()
