"""rcg-assemble: put finished stages together to a pipeline folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from rcg.core.errors import UserError
from rcg.scripts._command import SamplingDefaults, check_out_folder, run_command

if TYPE_CHECKING:
    import torch


@dataclass
class Config:
    """Flags of rcg-assemble."""

    generator: Path
    """Folder of the image generator (rcg-train-generator)."""
    tokenizer: Path
    """Folder of the tokenizer that the generator was trained with (rcg-train-tokenizer)."""
    out: Path
    """Folder for the pipeline."""
    rdm: Path | None = None
    """Folder of the representation diffusion model (rcg-train-rdm); leave it out for generators without representations."""
    encoder: Path | None = None
    """Folder of the encoder; only reconstruction and interpolation of images need it."""
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    """Settings that the pipeline is to sample with."""
    overwrite: bool = False
    """Replace the pipeline that --out holds."""

    def validate(self) -> None:
        """Raise `UserError` when `out` holds something that may not be replaced."""
        check_out_folder(self.out, self.overwrite, ("model_index.json",))


def check_cache(stage: Path, field: str, model: torch.nn.Module) -> None:
    """Refuse a frozen model other than the one that computed the cache a stage was trained on, where that is still there.

    Args:
        stage: folder of the trained stage; its `training/config.yaml` names the data.
        field: of the cache.
        model: that goes into the pipeline.
    """
    from rcg.data.cache import Cache, is_cache

    record = stage / "training" / "config.yaml"
    settings = yaml.safe_load(record.read_text()) if record.is_file() else None
    data = settings.get("data") if isinstance(settings, dict) else None
    if not isinstance(data, str) or not is_cache(Path(data)):
        return
    try:
        Cache(Path(data)).require(field, model)
    except UserError as e:
        raise UserError(f"{stage} was trained on the cache {data}, but {e}") from e


def run(config: Config) -> None:
    """Load the stages, which checks them, and save the pipeline in one move."""
    from rcg.core.components import load_model, load_scheduler
    from rcg.core.files import atomic_folder
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.image_gen.mage.scheduler import MaskGITScheduler
    from rcg.image_gen.mage.transformer import MageTransformer
    from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer
    from rcg.pipeline import RCGPipeline
    from rcg.rdm.representation_mlp import RepresentationMLP

    generator = load_model(MageTransformer, config.generator)
    tokenizer = load_model(VQTokenizer, config.tokenizer)
    encoder = None if config.encoder is None else load_model(SSLEncoder, config.encoder)
    pipe = RCGPipeline(
        image_generator=generator,
        image_scheduler=load_scheduler(config.generator, MaskGITScheduler),
        tokenizer=tokenizer,
        rdm=None if config.rdm is None else load_model(RepresentationMLP, config.rdm),
        rdm_scheduler=None if config.rdm is None else load_scheduler(config.rdm),
        encoder=encoder,
        sampling=config.sampling.given(),
    )
    if generator.config.condition == "representation" and config.rdm is None:
        raise UserError(
            f"{config.generator} was trained on representations and needs an RDM to draw them; add --rdm DIR."
        )
    check_cache(config.generator, "tokens", tokenizer)
    if encoder is not None:
        for stage in (config.generator, config.rdm):
            if stage is not None and generator.config.condition == "representation":
                check_cache(stage, "representations", encoder)
    with atomic_folder(config.out) as temporary:
        pipe.save_pretrained(temporary)
    print(f"The pipeline is in {config.out}; draw from it with: rcg-sample --model {config.out} --out samples")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command("rcg-assemble", Config, run, "Put finished stages together to a pipeline.", argv)


if __name__ == "__main__":
    main()
