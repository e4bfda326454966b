"""`rcg-synthesize`: training images from a generator: several of each caption, in shards, or labelled sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rcg.core.errors import UserError
from rcg.core.schema import Count, OutFolder, Seed, Size, flag_of
from rcg.scripts import _sets
from rcg.scripts._command import Spreading, run_command
from rcg.scripts._sets import SetSettings

if TYPE_CHECKING:
    from rcg.core.parts import Share
    from rcg.synthesis.drawers import Drawer
    from rcg.synthesis.prompts import Prompt
    from rcg.synthesis.run import Synthesis


@dataclass
class Config:
    """Flags of rcg-synthesize."""

    model: str
    """Folder of a text-to-image pipeline of diffusers, or of an RCG pipeline (or its name in the box, rcg/cifar10)."""
    out: OutFolder
    """Folder for the shards, 000000.tar …; each key holds key.json, key.0.jpg, key.1.jpg, … Or for a labelled set."""
    captions: str | None = None
    """Captions: a .txt file with one a line, .csv, .tsv, .jsonl, .parquet or .arrow; a folder that `datasets` saved; or
    hf:NAME[/CONFIG][:SPLIT[:COLUMN]], a data set of the Hugging Face Hub. One that occurs twice is drawn once."""
    column: str = "caption"
    """Column or key that holds the captions."""
    classes: Path | None = None
    """Instead of captions: a .txt file with the name of a class on each line; each template makes a caption of it.
    With --from-rdm: the names of the RDM's classes, in order."""
    templates: tuple[str, ...] = ()
    """Sentences with {} for the class (default: four, such as "a photo of a {}")."""
    representations: Count | None = None
    """With an RCG pipeline: how many representations to draw; the images of one are positives of each other."""
    images_per_caption: Size = 10
    """Images of each caption (or representation)."""
    guidance_scales: tuple[str, ...] = ()
    """Numbers, ranges (2:10 or 2:3:0.25), or small (2 3), large (8 10), mixed (2 3 4 5 6 8 10 12); the images of a caption
    take them in turn. 1 is off, and the least of most text-to-image pipelines. own: the pipeline's. Default: small for captions, own for representations; of a
    labelled set each image draws one of them (default: own, or 3 for Stable Diffusion)."""
    num_inference_steps: Size | None = None
    """Steps of the sampler (default: the pipeline's; 100 for a labelled set of Stable Diffusion)."""
    scheduler: str | None = None
    """Another of diffusers' schedulers by name, such as DPMSolverMultistepScheduler, or LCMScheduler for few-step models."""
    negative_prompt: str | None = None
    """What guidance leads away from (default: the empty caption)."""
    resolution: Size | None = None
    """Side at which the text-to-image pipeline works, in pixels (default: its own)."""
    image_size: Size | None = None
    """Side of the squares that are kept, in pixels (default: as they were made)."""
    format: Literal["jpg", "png"] | None = None
    """How images are kept: jpg (the default of captions), with quality 95, or png (that of labelled sets)."""
    captions_per_shard: Count = 100
    """Captions in a shard."""
    batch_size: Size = 16
    """Images made at once; a text-to-image pipeline on a CPU makes them one by one. It does not decide what they are."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes CUDA when there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; auto is bf16 where the hardware has it."""
    seed: Seed = 0
    """Of all images: one follows from its caption, its number, its guidance scale and this."""
    resume: bool = False
    """Go on with the run in --out, from the image where it was stopped. Implied where torchrun or SLURM starts the command again
    that began the run."""
    overwrite: bool = False
    """Throw away the shards or images that --out already holds."""
    spreading: Spreading = field(default_factory=Spreading)
    """Over several machines."""
    sets: SetSettings = field(default_factory=SetSettings)
    """Labelled sets."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used; a command that was started again resumes its run."""
        from rcg.synthesis.plan import parse_scales

        if self.spreading.share().began(self.out):
            self.resume, self.overwrite = True, False
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite exclude each other; choose one.")
        if self.guidance_scales != ("own",):
            parse_scales(self.guidance_scales)
        if _sets.check(self):
            return
        given = [n for n in ("captions", "classes", "representations") if getattr(self, n) is not None]
        if len(given) != 1:
            raise UserError(
                "say what to draw: one of --captions FILE, --classes FILE or --representations N; or a labelled set, by "
                "--from-inversion, --from-images or --from-rdm."
            )
        if self.templates and self.classes is None:
            raise UserError("--templates are for --classes; leave them out with captions.")
        if self.column != Config.column and (self.captions is None or self.captions.lower().endswith(".txt")):
            what = f"--{given[0]}" if self.captions is None else f"{self.captions}, which holds captions alone"
            raise UserError(f"--column has no effect with {what}; leave it out.")


def _prompts(config: Config) -> list[Prompt]:
    from rcg.synthesis import prompts

    if config.representations is not None:
        return prompts.representation_prompts(config.representations)
    if config.classes is not None:
        if config.classes.suffix != ".txt":
            raise UserError(f"--classes {config.classes}: give a .txt file with the name of a class on each line.")
        return prompts.class_prompts(prompts.read_captions(config.classes), config.templates or prompts.TEMPLATES)
    assert config.captions is not None
    return prompts.caption_prompts(prompts.read_captions(config.captions, config.column))


def _drawer(config: Config) -> Drawer:
    from rcg.core.hardware import own_device, pick_bf16
    from rcg.core.parts import Share
    from rcg.pipeline import RCGPipeline
    from rcg.synthesis.drawers import RCGImages, TextToImage, kind_of

    device = own_device(config.device, Share.from_environment())
    bf16 = pick_bf16(config.precision, device)
    is_rcg = kind_of(config.model) == "RCGPipeline"
    if is_rcg and config.representations is None:
        raise UserError("an RCG pipeline reads no captions; give --representations N instead.")
    if not is_rcg:
        if config.representations is not None:
            raise UserError("--representations are drawn by an RCG pipeline; give --captions or --classes.")
        return TextToImage(
            config.model,
            device,
            bf16=bf16,
            batch_size=config.batch_size,
            steps=config.num_inference_steps,
            scheduler=config.scheduler,
            resolution=config.resolution,
            negative_prompt=config.negative_prompt,
        )
    if given := [n for n in ("scheduler", "negative_prompt", "resolution") if getattr(config, n) is not None]:
        raise UserError(f"{flag_of(given[0])} is for text-to-image pipelines; leave it out.")
    pipe = RCGPipeline.from_pretrained(config.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    settings = pipe.settings(num_inference_steps=config.num_inference_steps)
    return RCGImages(pipe, settings, config.seed, config.batch_size, "bf16" if bf16 else "fp32")


def make_job(config: Config, share: Share) -> Synthesis:
    """Load what draws, and plan the images."""
    from rcg.synthesis.plan import Plan, parse_scales
    from rcg.synthesis.run import Storing, Synthesis

    prompts = _prompts(config)
    words = config.guidance_scales or (("own",) if config.representations is not None else ("small",))
    scales = () if words == ("own",) else parse_scales(words)
    plan = Plan(prompts, config.images_per_caption, scales, config.seed, config.captions_per_shard)
    storing = Storing(config.format or "jpg", config.image_size)
    drawer = _drawer(config)
    return Synthesis(
        plan, drawer, config.out, storing, share, model=config.model, resume=config.resume, overwrite=config.overwrite
    )


def run(config: Config) -> None:
    """Make this process's share of the shards, or let a cluster make all."""
    from rcg.core.parts import Share
    from rcg.sampling.shard_folder import ShardFolder
    from rcg.synthesis.run import MANIFEST

    if config.sets.given():
        _sets.run(config)
        return
    share = config.spreading.share_of(config.out)
    if config.spreading.engine == "ray":
        config.spreading.on_ray(partial(make_job, config, Share()), config.out)
        print(f"The shards are in {config.out}.")
        return
    if share.world == 1:  # others may be at work there
        folder = ShardFolder(config.out, share, "rcg-synthesize", MANIFEST)
        folder.check(resume=config.resume, overwrite=config.overwrite)
    synthesis = make_job(config, share)
    refused = _fill(synthesis, share.rank > 0 and config.spreading.part is None)
    if refused:
        print(f"{refused} images were kept back by the pipeline's safety checker.")
    if share.rank == 0 or config.spreading.part is not None:
        print(
            f"The shards are in {config.out}; rcg-train-encoder --method stablerep --data {config.out} learns from them."
        )


def _fill(synthesis: Synthesis, quiet: bool) -> int:
    """Make the shards behind a progress bar; returns how many images were kept back."""
    from tqdm import tqdm

    plan = synthesis.plan
    total = sum(len(plan.keys(shard)) for shard in synthesis.own) * plan.count
    first: list[int] = []
    with tqdm(total=total, unit=" images", disable=quiet) as bar:

        def show(done: int) -> None:
            if not first:  # what an earlier run made does not count for the rate
                first.append(done)
                bar.initial = done
            bar.n = done
            bar.refresh()

        return synthesis.run(show)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(
        "rcg-synthesize",
        Config,
        run,
        "Make training images: several of each caption, in shards, or a set with labels, in folders or shards.",
        argv,
    )


if __name__ == "__main__":
    main()
