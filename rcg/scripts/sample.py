"""rcg-sample: draw images from a pipeline into a folder, 000000.png … and grid.png."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rcg.core.errors import UserError
from rcg.core.schema import Count, CountOrZero, NonNegative, Seed, Size
from rcg.scripts._command import run_command

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from rcg.pipeline import RCGPipeline

FORMAT = 1
MANIFEST = "sampling.json"
GRID = "grid.png"
IMAGE = re.compile(r"(\d{6,})\.png")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
GRID_IMAGES = 64
PATIENCE_S = 1800.0
"""How long the first process waits, without a new image, for the other processes' part of the grid."""


@dataclass
class Config:
    """Flags of rcg-sample."""

    model: str
    """Folder of a pipeline (rcg-assemble makes one), or user/name on the Hub."""
    out: Path
    """Folder for the images; made if need be."""
    num_images: Count = 64
    """Images in all, over all processes."""
    seed: Seed = 0
    """Image i of a seed is always the same image, whatever the batch size, the processes or their order."""
    batch_size: Size = 32
    """Images that one process makes at a time."""
    num_inference_steps: Size | None = None
    """Steps that reveal the tokens (default, here and below: the model's own)."""
    guidance_scale: NonNegative | None = None
    """Guidance of the image generator; 1.0 is off."""
    temperature: NonNegative | None = None
    """Randomness of the order in which tokens are settled."""
    rdm_num_inference_steps: Size | None = None
    """Denoising steps of the representation."""
    rdm_guidance_scale: NonNegative | None = None
    """Guidance of a class-conditional RDM; 1.0 is off."""
    class_labels: tuple[CountOrZero, ...] = ()
    """For class-conditional models: image i gets the (i modulo n)-th of these n; none draws classes uniformly."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; with several processes each takes the GPU of its local rank."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Arithmetic of the image generator (the other parts stay fp32); auto is bf16 where the hardware has it."""
    rounding: Literal["round", "truncate"] = "round"
    """To 8 bits: to the nearest level, or downwards, as the reference program does (half a level darker)."""
    resume: bool = False
    """Go on with the run that --out holds: images that are there are kept; --num-images may be larger."""
    overwrite: bool = False
    """Throw away the images that an earlier rcg-sample left in --out."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite exclude each other; choose one.")
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; give the name of a folder.")


@dataclass
class Share:
    """Which images this process makes: rank, rank + world, rank + 2·world, …"""

    rank: int
    world: int

    @classmethod
    def from_environment(cls) -> Share:
        """RANK and WORLD_SIZE, as torchrun and accelerate set them; alone without them."""
        try:
            share = cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
        except ValueError:
            raise UserError("RANK and WORLD_SIZE must be whole numbers; start the processes with torchrun.") from None
        if not 0 <= share.rank < share.world:
            raise UserError(f"RANK {share.rank} does not lie below WORLD_SIZE {share.world}; start with torchrun.")
        return share

    def owns(self, name: str) -> bool:
        """Whether the picture `name` is this process's to write; the grid is the first one's."""
        match = IMAGE.fullmatch(name)
        return (int(match[1]) % self.world if match else 0) == self.rank


def image_path(folder: Path, index: int) -> Path:
    """Where image `index` lies."""
    return folder / f"{index:06d}.png"


def run_id(settings: dict[str, Any]) -> str:
    """Names a run by everything that its images depend on; written into each PNG (text chunk `rcg-run`)."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def is_done(folder: Path, index: int, run: str) -> bool:
    """Whether image `index` of this very run is there and whole."""
    from rcg.core.pictures import png_text

    return (png_text(image_path(folder, index)) or {}).get("rcg-run") == run


def inspect_folder(config: Config, settings: dict[str, Any], share: Share) -> list[Path]:
    """Whether this process may write its share into `--out`.

    Every process asks for itself, at any time: what counts against it is only images of its own share.

    Returns:
        Files to remove before the first image is written: what --overwrite throws away, leftovers of a killed run.

    Raises:
        UserError: the folder holds another run, this run without --resume, or other things.
    """
    from rcg.core.files import final_name

    folder = config.out
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    held = _read_manifest(folder / MANIFEST)  # after the list, as another process writes the manifest first
    unfinished = {
        n for n in found if (final := final_name(n)) and (final in (MANIFEST, GRID) or IMAGE.fullmatch(final))
    }
    names = [n for n in found if n not in unfinished]
    if held is None and names:
        raise UserError(f"--out {folder} is not empty and holds no rcg-sample run ({names[0]}); choose another folder.")
    if held is None and config.resume:
        raise UserError(f"there is no run to resume in {folder}; leave --resume out.")
    images = [n for n in names if IMAGE.fullmatch(n)]
    if strange := [n for n in names if n.lower().endswith(PICTURES) and n != GRID and not IMAGE.fullmatch(n)]:
        raise UserError(f"--out {folder} holds pictures that rcg-sample did not write ({strange[0]}); choose another.")
    differing = [] if held is None else [k for k in settings if held["settings"].get(k) != settings[k]]
    if held is not None and differing and images and not config.overwrite:
        what = ", ".join(f"{k} {held['settings'].get(k)}, not {settings[k]}" for k in differing[:3])
        raise UserError(f"--out {folder} holds another run ({what}); choose another folder or --overwrite.")
    own = [n for n in images if share.owns(n)]
    if own and not config.resume and not config.overwrite:
        raise UserError(f"--out {folder} already holds images of this run; add --resume to go on or --overwrite.")
    # not the manifest's leftovers: any process may be writing it at this moment
    remove = [n for n in unfinished if (final := final_name(n)) and final != MANIFEST and share.owns(final)]
    remove += own if config.overwrite else []
    return [folder / n for n in remove]


def claim_folder(config: Config, settings: dict[str, Any], remove: Sequence[Path]) -> None:
    """Remove what `inspect_folder` found and write down whose images the folder holds from now on."""
    from rcg.core.files import write_json

    for path in remove:
        path.unlink(missing_ok=True)
    held = _read_manifest(config.out / MANIFEST)
    if held is None or held["settings"] != settings:
        value = {"format": FORMAT, "run": run_id(settings), "model": config.model, "settings": settings}
        write_json(config.out / MANIFEST, value)


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        held = json.loads(path.read_text())
        if held["format"] == FORMAT and isinstance(held["settings"], dict):
            return dict(held)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is not what rcg-sample writes; choose another folder, or delete it.")


def draw(
    pipe: RCGPipeline,
    indices: Sequence[int],
    seed: int,
    labels: Sequence[int],
    threads: int,
    rounding: Literal["round", "truncate"] = "round",
    **settings: Any,
) -> list[Image.Image]:
    """The images `indices` of `seed`.

    On a CPU the work is shared out among `threads` Python threads that compute with one core each: the rounding of
    torch's kernels depends on how many cores work on one image.
    """
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from rcg.core.pictures import to_pil
    from rcg.core.rng import sample_generators

    def part(some: Sequence[int]) -> list[Image.Image]:
        result = pipe(
            generator=[sample_generators(seed, i, 1)[0] for i in some],
            class_labels=[labels[i % len(labels)] for i in some] if labels else None,
            output_type="pt",
            **settings,
        )
        assert not isinstance(result, tuple)
        assert isinstance(result.images, torch.Tensor)
        return to_pil(result.images, rounding)

    size = -(-len(indices) // threads)
    parts = [indices[i : i + size] for i in range(0, len(indices), size)]
    if len(parts) == 1:
        return part(parts[0])
    with ThreadPoolExecutor(len(parts)) as pool:
        return [image for images in pool.map(part, parts) for image in images]


def wait_for_images(folder: Path, count: int, run: str, patience: float = PATIENCE_S) -> None:
    """Wait until the first `count` images are there.

    Raises:
        UserError: when none of the missing ones appears for `patience` seconds.
    """
    missing = list(range(count))
    since = time.monotonic()
    while True:
        left = [i for i in missing if not is_done(folder, i, run)]
        if not left:
            return
        if len(left) < len(missing):
            missing, since = left, time.monotonic()
        if time.monotonic() - since > patience:
            raise UserError(
                f"{len(left)} images of other processes are missing (the first is {image_path(folder, left[0]).name}); "
                "run all processes again with --resume."
            )
        time.sleep(0.2)


def write_grid(folder: Path, num_images: int, run: str) -> None:
    """grid.png: the first images (at most 64) in a square-ish sheet, once they are all there."""
    from PIL import Image

    from rcg.core.pictures import make_grid, save_png

    count = min(num_images, GRID_IMAGES)
    wait_for_images(folder, count, run)
    images = []
    for i in range(count):
        with Image.open(image_path(folder, i)) as image:
            images.append(image.convert("RGB"))
    save_png(folder / GRID, make_grid(images), {"rcg-run": run})


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _load(config: Config, share: Share) -> tuple[RCGPipeline, torch.device, bool]:
    import torch
    from diffusers.utils import logging

    from rcg.core.hardware import pick_bf16, pick_device
    from rcg.pipeline import RCGPipeline

    logging.disable_progress_bar()
    device = pick_device(config.device)
    if device.type == "cuda" and share.world > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", share.rank)) % torch.cuda.device_count())
    pipe = RCGPipeline.from_pretrained(config.model)
    pipe.set_progress_bar_config(disable=True)
    return pipe, device, pick_bf16(config.precision, device)


def run(config: Config) -> None:
    """Make this process's share of the images; the first process also makes the grid."""
    import torch
    from tqdm import tqdm

    from rcg.core.pictures import save_png
    from rcg.sampling.inputs import resolve_labels

    share = Share.from_environment()
    pipe, device, bf16 = _load(config, share)
    sampling = dict(
        pipe.settings(
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            temperature=config.temperature,
            rdm_num_inference_steps=config.rdm_num_inference_steps,
            rdm_guidance_scale=config.rdm_guidance_scale,
        )
    )
    labels = list(config.class_labels)
    resolve_labels(labels or None, len(labels), pipe.num_classes, [])
    settings = {
        "model": pipe.identity(),
        "seed": config.seed,
        "precision": "bf16" if bf16 else "fp32",
        "class_labels": labels,
        "rounding": config.rounding,
        **sampling,
    }
    remove = inspect_folder(config, settings, share)
    pipe.to(device)
    if bf16:
        torch.nn.Module.to(
            pipe.image_generator, torch.bfloat16
        )  # diffusers' own `to` warns of modules it does not have
    threads = 1
    if device.type == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)

    key = run_id(settings)
    own = range(share.rank, config.num_images, share.world)
    todo = [i for i in own if not (config.resume and is_done(config.out, i, key))]
    if config.resume and not todo:
        claim_folder(config, settings, remove)
    with tqdm(total=len(own), initial=len(own) - len(todo), unit=" images", disable=share.rank > 0) as bar:
        for number, indices in enumerate(_chunks(todo, config.batch_size)):
            images = draw(pipe, indices, config.seed, labels, threads, config.rounding, **sampling)
            if number == 0:  # not before: a command that fails at once leaves the folder as it was
                claim_folder(config, settings, remove)
            for i, image in zip(indices, images, strict=True):
                save_png(image_path(config.out, i), image, {"rcg-run": key})
            bar.update(len(indices))
    if share.rank == 0:
        write_grid(config.out, config.num_images, key)
        print(f"The images are in {config.out}, the first of them on {config.out / GRID}.")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command("rcg-sample", Config, run, "Draw images from a pipeline into a folder.", argv)


if __name__ == "__main__":
    main()
