"""rcg-assemble: put finished stages together to a pipeline folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from rcg.errors import UserError
from rcg.scripts._command import run_command

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
    num_inference_steps: int | None = None
    """Default to store: steps that reveal the tokens (otherwise the generator's scheduler says)."""
    guidance_scale: float | None = None
    """Default to store: guidance of the image generator; 1.0 is off."""
    temperature: float | None = None
    """Default to store: randomness of the order in which tokens are settled."""
    rdm_num_inference_steps: int | None = None
    """Default to store: denoising steps of the representation (otherwise what suits the RDM's scheduler)."""
    rdm_guidance_scale: float | None = None
    """Default to store: guidance of a class-conditional RDM; 1.0 is off."""
    overwrite: bool = False
    """Replace the pipeline that --out holds."""

    def validate(self) -> None:
        """Raise `UserError` when `out` holds something that may not be replaced."""
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; give the name of a folder.")
        if not self.out.is_dir() or not any(self.out.iterdir()):
            return
        if not (self.out / "model_index.json").is_file():
            raise UserError(f"--out {self.out} is not empty and holds no pipeline; choose another folder.")
        if not self.overwrite:
            raise UserError(f"--out {self.out} already holds a pipeline; add --overwrite or choose another folder.")


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
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.files import atomic_folder
    from rcg.image_gen.mage import MageTransformer
    from rcg.image_gen.maskgit_scheduler import MaskGITScheduler
    from rcg.image_gen.vq_tokenizer import VQTokenizer
    from rcg.loading import load_model, load_scheduler
    from rcg.pipeline import RCGPipeline
    from rcg.rdm.representation_mlp import RepresentationMLP

    generator = load_model(MageTransformer, config.generator)
    tokenizer = load_model(VQTokenizer, config.tokenizer)
    encoder = None if config.encoder is None else load_model(SSLEncoder, config.encoder)
    sampling = {
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "temperature": config.temperature,
        "rdm_num_inference_steps": config.rdm_num_inference_steps,
        "rdm_guidance_scale": config.rdm_guidance_scale,
    }
    pipe = RCGPipeline(
        image_generator=generator,
        image_scheduler=load_scheduler(config.generator, MaskGITScheduler),
        tokenizer=tokenizer,
        rdm=None if config.rdm is None else load_model(RepresentationMLP, config.rdm),
        rdm_scheduler=None if config.rdm is None else load_scheduler(config.rdm),
        encoder=encoder,
        sampling={name: value for name, value in sampling.items() if value is not None},
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
