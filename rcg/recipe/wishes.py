"""What a person asks of the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rcg.core.durations import parse_duration
from rcg.core.errors import UserError
from rcg.core.schema import OutFolder, Seed, Size


@dataclass
class Wishes:
    """The flags of `rcg-train`."""

    data: str
    """A folder of images; shards, a zip archive, a .parquet or .arrow table of them, also at an address (s3://bucket/x.zip);
    hf:OWNER/NAME:SPLIT, a data set on the Hugging Face Hub; or an
    embedded set: shapes[:n=2000,size=32,seed=0] or clothing[:split=train,…]."""
    out: OutFolder
    """Folder for everything: plan.json, the stages, model, images, metrics.json and the page index.html."""
    budget: str | None = None
    """How long all of it may take, such as 10m, 1h30m or 2h; without it, one is proposed (and taken with --yes)."""
    yes: bool = False
    """Take the budget that is proposed."""
    image_size: Size | None = None
    """Side of the pictures in pixels (default: 32, or 64 if the pictures are that large and the budget is long)."""
    encoder: str | None = None
    """The frozen encoder: the folder of an SSLEncoder or of a pipeline that has one, a name in the box (rcg/cifar10), or
    timm:NAME for a published one of timm. Default: that of the model in the box; without a box, one is trained."""
    train_encoder: bool = False
    """Train an encoder on these very images (MoCo-v3), for about a third of the time."""
    new_generator: bool = False
    """Begin with a new image generator, where otherwise one of the size of that in the box begins with its weights."""
    extractor: str | None = None
    """Whose features judge: inception, inception-768, timm:NAME[:FILE], encoder:DIR as in rcg-eval, or encoder. Default: Inception where
    its weights can be had, else the encoder."""
    extractor_weights: Path | None = None
    """The extractor's weights file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes CUDA when there is one."""
    seed: Seed = 0
    """Of weights, order, noise and samples."""
    resume: bool = False
    """Go on with the run in --out where it was stopped, by its plan."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if self.budget is not None:
            parse_duration(self.budget)
        if self.budget is not None and self.yes:
            raise UserError("--yes takes the budget that is proposed; leave it out where --budget gives one.")
        if self.encoder is not None and self.train_encoder:
            raise UserError("--encoder and --train-encoder exclude each other; leave one of them out.")
        if self.extractor == "encoder" and self.extractor_weights is not None:
            raise UserError("--extractor encoder brings its weights along; leave out --extractor-weights.")
        held = (self.out / "plan.json").is_file()
        if self.resume and not held:
            raise UserError(
                f"--resume: {self.out} holds no run to go on with; check --out, or leave --resume out to start one."
            )
        if not self.resume and self.out.is_dir() and any(self.out.iterdir()):
            way_out = "add --resume to go on with it, or choose another" if held else "choose another folder"
            raise UserError(f"--out {self.out} already holds {'a run' if held else 'other things'}; {way_out}.")

    @property
    def seconds(self) -> float | None:
        """The budget, if there is one."""
        return None if self.budget is None else parse_duration(self.budget)

    def recorded(self) -> dict[str, Any]:
        """What a resumed run must share (JSON values)."""
        return {
            "data": self.data,
            "image_size": self.image_size,
            "encoder": self.encoder,
            "train_encoder": self.train_encoder,
            "new_generator": self.new_generator,
            "extractor": self.extractor,
            "extractor_weights": None if self.extractor_weights is None else str(self.extractor_weights),
            "seed": self.seed,
        }
