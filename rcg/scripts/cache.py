"""`rcg-cache`: run the frozen models once over all images and keep what they computed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rcg.core.errors import UserError
from rcg.core.schema import Count, OutFolder, PositiveShare, Seed, Size, flag_of
from rcg.scripts._command import Spreading, run_command

if TYPE_CHECKING:
    from rcg.data.build import CacheJob


@dataclass
class CacheConfig:
    """What to cache."""

    data: str
    """A folder of images; shards, a zip archive, a .parquet or .arrow table of them, also at an address (s3://bucket/x.zip);
    hf:OWNER/NAME:SPLIT, a data set on the Hugging Face Hub; or an
    embedded set: shapes[:n=2000,size=32,seed=0] or clothing[:split=train,…]."""
    out: OutFolder
    """Folder of the cache. An unfinished cache is continued; fields that it lacks are added."""
    image_size: Size
    """Side of the square views that the models see, in pixels."""
    encoder: Path | None = None
    """Folder of an SSLEncoder, or of a pipeline that has one, or a name in the box (rcg/cifar10): caches representations."""
    tokenizer: Path | None = None
    """Folder of a tokenizer (or as above): caches the tokens of a VQTokenizer, or the latents of an autoencoder of
    diffusers."""
    images: bool = False
    """Keep the views themselves, for generators of pixels."""
    clusters: Size | None = None
    """Sort the representations into so many clusters by k-means, for generators with condition cluster."""
    views: Size = 2
    """Views of each image: 1 is the plain centre crop; otherwise random crops, every other one mirrored."""
    crop_scale: PositiveShare = 1.0
    """Least share of the picture's area in a random crop; 1 resizes the short side and crops, as the paper does."""
    batch_size: Size = 64
    """Views in one forward pass."""
    shard_size: Count | None = None
    """Images in a shard (default: about 8192 views' worth). A killed run loses the shard that it was at."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes CUDA when there is one, of several processes each its own GPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the models; bf16 runs them under autocast."""
    half: bool = False
    """Store representations and latents as float16."""
    seed: Seed = 0
    """Seed of the crops."""
    spreading: Spreading = field(default_factory=Spreading)
    """Over several machines."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if self.clusters is not None and self.encoder is None:
            raise UserError("--clusters are found among representations; add --encoder DIR.")
        if self.encoder is None and self.tokenizer is None and not self.images:
            raise UserError("there is nothing to keep; add --encoder DIR, --tokenizer DIR or --images.")
        for name in ("half", "precision"):
            if self.encoder is None and self.tokenizer is None and getattr(self, name) != getattr(CacheConfig, name):
                raise UserError(
                    f"{flag_of(name)} has no effect with --images alone, which are kept as bytes; leave it out."
                )
        if self.views == 1 and self.crop_scale != CacheConfig.crop_scale:
            raise UserError("--crop-scale has no effect with --views 1, the centre crop; leave one of them out.")

    def command(self) -> str:
        """The command line that makes this cache."""
        words = ["rcg-cache", "--data", self.data, "--out", str(self.out), "--image-size", str(self.image_size)]
        defaults = CacheConfig(data="", out=Path(), image_size=0)
        for name in ("encoder", "tokenizer", "clusters", "views", "crop_scale", "batch_size", "shard_size", "precision",
                     "seed"):  # fmt: skip
            if (value := getattr(self, name)) != getattr(defaults, name):
                words += [flag_of(name), str(value)]
        return shlex.join(words + ["--half"] * self.half + ["--images"] * self.images)


def _work(config: CacheConfig) -> dict[str, Any]:
    """Load the models and open the images: arguments that `build_cache` and `CacheJob` share."""
    from rcg.core.components import load_any, load_model
    from rcg.core.hardware import own_device
    from rcg.data.build import CacheField, Views
    from rcg.data.sources import open_source

    fields: dict[str, CacheField] = {}
    if config.encoder is not None:
        from rcg.encoders.ssl_encoder import SSLEncoder

        encoder = load_model(SSLEncoder, config.encoder)
        fields["representations"] = CacheField(encoder, encoder, "float16" if config.half else "float32")
    if config.tokenizer is not None:
        from rcg.image_gen.tokenizers.codec import TOKENIZERS, codec_of

        tokenizer = load_any(TOKENIZERS, config.tokenizer)
        codec = codec_of(tokenizer)
        if config.image_size % codec.factor:
            raise UserError(
                f"--image-size {config.image_size} is no multiple of {codec.factor}, by which the tokenizer "
                "shrinks images; choose one that is."
            )
        if config.half and config.encoder is None and codec.storage(True) == codec.storage(False):
            raise UserError(f"--half has no effect on {codec.field}, which are whole numbers; leave it out.")
        fields[codec.field] = CacheField(tokenizer, codec.encode, codec.storage(config.half))
    if config.images:
        views = Views()
        fields["images"] = CacheField(views, views, "uint8")
    return {
        "source": open_source(config.data),
        "folder": config.out,
        "fields": fields,
        "size": config.image_size,
        "views": config.views,
        "crop_scale": config.crop_scale,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "shard_size": config.shard_size,
        "device": own_device(config.device, config.spreading.share()),
        "precision": config.precision,
        "command": config.command(),
    }


def _add_clusters(config: CacheConfig, shared: bool = False) -> None:
    from rcg.data.clusters import add_clusters

    if config.clusters is not None:
        add_clusters(config.out, config.clusters, config.seed, command=config.command(), shared=shared)


def make_job(config: CacheConfig) -> CacheJob:
    """Load what the cache is made of."""
    from rcg.data.build import CacheJob

    return CacheJob(**_work(config), after=partial(_add_clusters, config))


def run(config: CacheConfig) -> None:
    """Build the cache; see `rcg.data.build.build_cache`."""
    from rcg.data.build import build_cache
    from rcg.data.layout import wait_for_shards

    if config.spreading.engine == "ray":
        config.spreading.on_ray(partial(make_job, config))
        print(f"The cache is in {config.out}.", file=sys.stderr)
        return
    share = config.spreading.share()
    alone = config.spreading.part is not None
    if alone and config.clusters is not None:
        raise UserError("--clusters are found in the whole cache; run the command without --part when all are done.")
    work = _work(config)
    build_cache(**work, rank=share.rank, world=share.world)
    if alone:
        print(f"Part {config.spreading.part} of the cache is in {config.out}.", file=sys.stderr)
    elif share.rank == 0:
        wait_for_shards(config.out, list(work["fields"]))
        _add_clusters(config, shared=share.world > 1)
        print(f"The cache is in {config.out}.", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rcg-cache`."""
    run_command(
        "rcg-cache", CacheConfig, run, "Run frozen models once over all images and keep what they computed.", argv
    )


if __name__ == "__main__":
    main()
