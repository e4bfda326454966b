"""rcg-sample: draw images from a pipeline into a folder, 000000.png … and grid.png, or into shards, 000000.tar …"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from rcg.core.errors import UserError
from rcg.core.schema import Count, CountOrZero, OutFolder, Seed, Size
from rcg.core.shipped import DEFAULT
from rcg.scripts._command import SamplingSettings, Spreading, run_command

if TYPE_CHECKING:
    from rcg.core.parts import Share
    from rcg.pipeline import RCGPipeline
    from rcg.sampling.job import SampleJob


@dataclass
class Config:
    """Flags of rcg-sample."""

    out: OutFolder
    """Folder for the images; made if need be."""
    model: str = DEFAULT
    """Folder of a pipeline (rcg-assemble makes one), name of one in the box, which needs no network, or user/name on the
    Hub."""
    num_images: Count = 64
    """Images in all, over all processes."""
    seed: Seed = 0
    """Image i of a seed is always the same image, whatever the batch size, the processes or their order."""
    batch_size: Size = 32
    """Images that one process makes at a time."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """Default: the model's own."""
    class_labels: tuple[CountOrZero, ...] = ()
    """Numbers of classes, or of clusters where generator or RDM know these (as the box's RDM): image i gets the (i modulo n)-th
    of these n. Default: each image's is drawn, a class uniformly, a cluster as often as it occurs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; with several processes each takes the GPU of its local rank."""
    exact: bool = False
    """Compute as the reference program does: every token at every step, 250 DDIM steps of the paper's RDM (unless
    --rdm-num-inference-steps says otherwise), fp32. Several times slower; the quality is the same."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the models; auto is bf16 where the hardware multiplies it faster. --exact is fp32."""
    rounding: Literal["round", "truncate"] = "round"
    """To 8 bits: to the nearest level, or downwards, as the reference program does (half a level darker)."""
    shards: bool = False
    """Write shards, 000000.tar …, instead of single files: for many images. --generated, --data and the like read them; the
    images are the same."""
    shard_format: Literal["tar", "parquet"] | None = None
    """With --shards: WebDataset's tar (the default), or Parquet with the columns image and label, which Hugging Face datasets
    reads, too (extra: tables)."""
    images_per_shard: Count | None = None
    """With --shards: images in each (default: 1000). A process draws whole shards."""
    resume: bool = False
    """Go on with the run that --out holds: images that are there are kept; --num-images may be larger. Implied where torchrun or
    SLURM starts the command again that began the run."""
    overwrite: bool = False
    """Throw away the images that an earlier rcg-sample left in --out."""
    spreading: Spreading = field(default_factory=Spreading)
    """Over several machines."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used; a command that was started again resumes its run."""
        if self.spreading.share().began(self.out):
            self.resume, self.overwrite = True, False
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite exclude each other; choose one.")
        self.sampling.check_guided()
        if self.images_per_shard is not None and not self.shards:
            raise UserError("--images-per-shard is for --shards; add that or leave it out.")
        if self.shard_format is not None and not self.shards:
            raise UserError("--shard-format is for --shards; add that or leave it out.")
        if self.exact and self.precision == "bf16":
            raise UserError("--exact computes in fp32; leave out --precision bf16.")


def _load(config: Config, share: Share) -> RCGPipeline:
    from diffusers.utils import logging

    from rcg.core.hardware import own_device
    from rcg.pipeline import RCGPipeline

    logging.disable_progress_bar()
    pipe = RCGPipeline.from_pretrained(config.model)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(own_device(config.device, share))


def make_job(config: Config, share: Share) -> SampleJob:
    """Load the pipeline; a process of several takes the GPU of its own."""
    from rcg.core.hardware import pick_bf16
    from rcg.sampling.bulk import IMAGES_PER_SHARD
    from rcg.sampling.drawing import Drawing
    from rcg.sampling.inputs import resolve_labels
    from rcg.sampling.job import SampleJob

    pipe = _load(config, share)
    settings = pipe.settings(**config.sampling.given(), exact=config.exact)
    rdm = pipe.representation_generator
    if config.exact and rdm is not None and rdm.exact_steps is not None:
        settings["rdm_num_inference_steps"] = config.sampling.rdm_num_inference_steps
    labels = list(config.class_labels)
    resolve_labels(labels or None, len(labels), pipe.num_classes, [])
    bf16 = not config.exact and pick_bf16(config.precision, pipe.device)
    drawing = Drawing(
        pipe, config.seed, settings, labels, config.rounding, config.exact, precision="bf16" if bf16 else "fp32"
    )
    return SampleJob(
        config.out,
        config.num_images,
        drawing.depends_on(),
        drawing,
        config.model,
        config.batch_size,
        labels,
        (config.images_per_shard or IMAGES_PER_SHARD) if config.shards else None,
        config.shard_format or "tar",
        config.resume,
        config.overwrite,
    )


def run(config: Config) -> None:
    """Make this process's share of the images, or let a cluster make all; the first process also makes the grid."""
    from tqdm import tqdm

    from rcg.core.parts import Share
    from rcg.sampling.folder import GRID

    share = config.spreading.share_of(config.out)
    if config.spreading.engine == "ray":
        config.spreading.on_ray(partial(make_job, config, Share()), config.out)
        print(f"The images are in {config.out}, the first of them on {config.out / GRID}.")
        return
    job = make_job(config, share)
    alone = config.spreading.part is not None
    own = job.count(share)
    with tqdm(total=own, unit=" images", disable=share.rank > 0 and not alone) as bar:

        def show(done: int) -> None:
            bar.update(done - bar.n)

        job.fill(share, resume=config.resume, overwrite=config.overwrite, grid=not alone, on_images=show)
    if alone:
        job.finish_if_ready()
        print(f"Part {config.spreading.part} of the images is in {config.out}.")
    elif share.rank == 0:
        print(f"The images are in {config.out}, the first of them on {config.out / GRID}.")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command("rcg-sample", Config, run, "Draw images from a pipeline into a folder.", argv)


if __name__ == "__main__":
    main()
