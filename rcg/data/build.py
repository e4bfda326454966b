"""Building a cache: by one process or many, which need not know of each other; a killed build goes on where it was."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from rcg.core.ahead import read_ahead
from rcg.core.errors import UserError
from rcg.core.files import RUN, atomic_file, atomic_folder, claimed, encoding_hash, sweep, write_json
from rcg.core.hardware import has_free_core
from rcg.core.parts import Share
from rcg.core.rng import derive_seed
from rcg.data.images import DecodePool, Framing, to_unit
from rcg.data.layout import (
    FORMAT,
    VERSION,
    Dtype,
    Field,
    Manifest,
    Transform,
    is_cache,
    missing_files,
    read_manifest,
    save_array,
    shard_files,
    shard_folder,
    shard_range,
)
from rcg.data.sources import ImageSource
from rcg.data.verify import num_threads

Precision = Literal["fp32", "bf16"]
_SAMPLES_PER_SHARD = 8192
_STALE_SECONDS = 60.0


@dataclass(frozen=True)
class CacheField:
    """One thing to compute from every view.

    Attributes:
        model: the frozen model; its hash is what `Cache.require` compares.
        compute: images float32 [B, 3, S, S] in [0, 1] → [B, *shape], floating-point or integer.
        dtype: how it is stored: float32 or float16; uint8, uint16, int32 or int64. Default: float32 or int32.
    """

    model: nn.Module
    compute: Callable[[torch.Tensor], torch.Tensor]
    dtype: Dtype | None = None


class Views(nn.Module):
    """Computes nothing: keeps the views themselves, for generators of pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float [B, 3, S, S] in [0, 1] → uint8."""
        return images.mul(255).round().to(torch.uint8)


def views_of(image: np.ndarray, framing: Framing, seed: int, index: int, views: int) -> Iterator[np.ndarray]:
    """The K views of an image, uint8 [S, S, 3], from `framing.base` of it.

    View v is mirrored if v is odd; views 2p and 2p+1 share a crop, drawn from (seed, index, p). A view follows from the
    cache's seed, the image's index and v alone.
    """
    for v in range(views):
        rng = np.random.default_rng(derive_seed(seed, index, v // 2))
        yield framing.view(image, rng, flip=v % 2 == 1)


def build_cache(
    source: ImageSource,
    folder: str | Path,
    fields: dict[str, CacheField],
    size: int,
    views: int = 1,
    *,
    crop_scale: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    shard_size: int | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    rank: int | None = None,
    world: int | None = None,
    progress: bool = True,
    command: str | None = None,
) -> None:
    """Compute `fields` of K views of every image, as far as that is not done yet.

    Shard s belongs to process s mod `world`. A shard appears whole or not at all, so that a build that was killed goes
    on from the last complete shard when called again, with any number of processes. A field can be added to a cache
    later: call this with that field, the same source and the same transform. The numbers do not depend on the
    number of processes (they may differ in the last bits between batch sizes, as a model's output does).

    Args:
        source: the images.
        folder: where the cache is, or will be.
        fields: what to compute, by name.
        size: side of the square views, in pixels.
        views: K. A single view is the plain centre crop; two or more are random crops, every other one mirrored
            (see `views_of`).
        crop_scale: least share of the picture's area in a random crop, see `Framing`.
        seed: of the crops.
        batch_size: views in one forward pass.
        shard_size: images in a shard; default about 8192 views' worth.
        device: where to compute; the models are moved there.
        precision: bf16 runs the models under autocast.
        rank, world: which process this is, of how many; default `RANK` and `WORLD_SIZE` of the environment (torchrun
            and accelerate set them), or the only one.
        progress: show a progress bar (of the first process's share).
        command: what to tell the user to run if the cache is found incomplete.

    Raises:
        UserError: an argument is out of range; the folder holds something else, or a cache of another source, model or
            transform; a model gives NaN or numbers that the dtype cannot hold.
        OSError: for instance a full disk; what is complete stays, nothing is left half-written.
    """
    here = Share.from_environment() if rank is None or world is None else Share()
    share = Share(here.rank if rank is None else rank, here.world if world is None else world)
    if share.world < 1:
        raise UserError(f"the world size is {share.world}, but it must be at least 1.")
    if not 0 <= share.rank < share.world:
        raise UserError(f"process {share.rank} of {share.world} does not exist; ranks run from 0 to {share.world - 1}.")
    job = CacheJob(
        source=source, folder=Path(folder), fields=fields, size=size, views=views, crop_scale=crop_scale, seed=seed,
        batch_size=batch_size, shard_size=shard_size, device=torch.device(device), precision=precision, command=command,
    )  # fmt: skip
    with claimed(job.folder, shared=share.world > 1, run=job.identity):
        job.claim()
        if share.world == 1:
            sweep(job.folder)
        job.run(share, progress and share.rank == 0)


@dataclass(kw_only=True)
class CacheJob:
    """Building a cache in parts, here or by engines that run these on other machines; a `rcg.core.parts.Job`.

    Args:
        source, folder, fields, size, views, crop_scale, seed, batch_size, shard_size, device, precision, command: see
            `build_cache`.
        after: called when the cache is complete.
    """

    source: ImageSource
    folder: Path
    fields: dict[str, CacheField]
    size: int
    views: int
    crop_scale: float
    seed: int
    batch_size: int
    shard_size: int | None
    device: torch.device
    precision: Precision
    command: str | None
    after: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if not self.fields:
            raise UserError("there is nothing to compute; give an encoder, a tokenizer or both.")
        for name, value in (("views", self.views), ("batch size", self.batch_size), ("shard size", self.shard_size)):
            if value is not None and value < 1:
                raise UserError(f"the {name} is {value}, but it must be at least 1.")
        cropped = self.views > 1
        self.framing = Framing(self.size, "crop_flip" if cropped else "none", self.crop_scale if cropped else 1.0)
        self.pool = DecodePool()

    @property
    def parts(self) -> int:
        """A part is a shard."""
        return self.manifest["shards"]

    def claim(self) -> None:
        """See `rcg.core.parts.Job`."""
        _ = self.manifest

    def do(self, part: Share) -> None:
        """See `rcg.core.parts.Job`."""
        self.run(part, progress=False)

    def finish(self) -> None:
        """See `rcg.core.parts.Job`."""
        self.after()

    # ---- what the cache is ----

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """Of the models, by the fields that they compute."""
        return {name: encoding_hash(field.model) for name, field in self.fields.items()}

    @property
    def transform(self) -> Transform:
        """Of the images, before the models see them."""
        return {
            "size": self.framing.size,
            "augment": self.framing.augment,
            "crop_scale": self.framing.crop_scale,
            "views": self.views,
            "seed": self.seed,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """All that the cache depends on, as JSON: equal in all processes that build it together."""
        return {
            "source": [self.source.fingerprint, len(self.source), self.source.label_digest()],
            "transform": self.transform,
            "fields": {name: [self.hashes[name], field.dtype] for name, field in self.fields.items()},
            "precision": self.precision,
            "shard_size": self.shard_size,
        }

    @functools.cached_property
    def manifest(self) -> Manifest:
        """Of the folder, checked against what is asked for; it is written, if there is none or fields are new."""
        transform, hashes = self.transform, self.hashes
        free = _is_free(self.folder)  # before looking for the manifest, which another process may write meanwhile
        if is_cache(self.folder):
            manifest = read_manifest(self.folder)
            self._compare(manifest, transform, hashes)
        else:
            if not free:
                raise UserError(f"{self.folder} exists and is not a cache; choose another folder.")
            count = len(self.source)
            shard_size = self.shard_size or max(1, _SAMPLES_PER_SHARD // self.views)
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "source": {
                    "name": self.source.name,
                    "fingerprint": self.source.fingerprint,
                    "count": count,
                    "labelled": self.source.labels is not None,
                    "class_names": self.source.class_names,
                    "skipped": [list(item) for item in self.source.skipped],
                },
                "transform": transform,
                "shard_size": shard_size,
                "shards": -(-count // shard_size),
                "fields": {},
                "commands": {},
            }
            if labels := self.source.label_digest():
                manifest["source"]["label_digest"] = labels
        new = [name for name in self.fields if name not in manifest["fields"]]
        for name, field in self.fields.items():
            field.model.to(self.device).eval()
            if name in new:
                manifest["fields"][name] = self._describe(name, field, hashes[name])
        if new:
            manifest["commands"] |= dict.fromkeys(new, self.command)
            write_json(self.folder / "manifest.json", manifest)
        return manifest

    def _compare(self, manifest: Manifest, transform: Transform, hashes: dict[str, str]) -> None:
        def refuse(what: str) -> UserError:
            return UserError(f"{self.folder} holds a cache {what}; choose another folder for this one.")

        known = manifest["source"]
        if (known["fingerprint"], known["count"]) != (self.source.fingerprint, len(self.source)):
            raise refuse(f"of other images ({known['name']}, {known['count']} images)")
        labelled, labels = self.source.labels is not None, self.source.label_digest()
        if (known["labelled"], known["class_names"], known.get("label_digest", labels)) != (
            labelled, self.source.class_names, labels,
        ):  # fmt: skip
            raise refuse("of the same images with other labels")
        held: Mapping[str, Any] = manifest["transform"]
        for key, value in transform.items():
            if held[key] != value:
                raise refuse(f"with {key.replace('_', ' ')} {held[key]}, not {value}")
        if self.shard_size not in (None, manifest["shard_size"]):
            raise refuse(f"with {manifest['shard_size']} images in a shard, not {self.shard_size}")
        for name, found in hashes.items():
            if (field := manifest["fields"].get(name)) is None:
                continue
            if field["model_hash"] != found:
                raise refuse(f"whose {name} were computed by another {field['model_class']}")
            if field["precision"] != self.precision:
                raise refuse(f"whose {name} were computed in {field['precision']}, not {self.precision}")
            if self.fields[name].dtype not in (None, field["dtype"]):
                raise refuse(f"whose {name} are stored as {field['dtype']}, not {self.fields[name].dtype}")

    def _describe(self, name: str, field: CacheField, hash_: str) -> Field:
        """Compute the first image to see what comes out."""
        view = next(views_of(self.framing.base(self.source.image(0)), self.framing, self.seed, 0, self.views))
        result = self._compute(field, _to_batch([view]))
        dtype: Dtype = field.dtype or ("float32" if np.issubdtype(result.dtype, np.floating) else "int32")
        if np.issubdtype(np.dtype(dtype), np.floating) != np.issubdtype(result.dtype, np.floating):
            raise UserError(f"the {name} are {result.dtype} numbers, which cannot be stored as {dtype}.")
        return {
            "model_class": type(field.model).__name__,
            "model_hash": hash_,
            "precision": self.precision,
            "dtype": dtype,
            "shape": list(result.shape[1:]),
        }

    # ---- making it ----

    def run(self, share: Share, progress: bool) -> None:
        """Compute what is missing of the shards of a share."""
        manifest, shards = self.manifest, share.of(self.parts)
        mine = {shard_folder(self.folder, shard).name for shard in shards}
        for stale in (*self.folder.glob(".shard-*"), *self.folder.glob("shard-*/.*.npy")):
            if mine & {stale.name.split(".")[1], stale.parent.name}:  # of a process that was killed
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        for stale in self.folder.glob(".manifest.json.*"):  # any process may be writing this one, for an instant
            with suppress(FileNotFoundError):
                if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
                    stale.unlink()
        todo = {shard: missing_files(self.folder, manifest, shard, list(self.fields)) for shard in shards}
        todo = {shard: names for shard, names in todo.items() if names}
        total = sum(len(shard_range(manifest, shard)) for shard in todo) * self.views
        with tqdm(total=total, desc=f"caching {self.source.name}", unit="view", disable=not progress) as bar:
            made = self._batches(manifest, list(todo))
            batches = read_ahead(made, depth=4) if has_free_core(self.device) else made
            try:
                for shard, names in todo.items():
                    self._shard(manifest, shard, names, batches, bar)
            finally:
                batches.close()

    def _batches(self, manifest: Manifest, shards: list[int]) -> Generator[torch.Tensor, None, None]:
        """uint8 [B, 3, S, S]; a batch never crosses shards. Image by image, and an image's views in their order."""

        def views(index: int) -> list[np.ndarray]:
            base = self.framing.base(self.source.image(index))
            return list(views_of(base, self.framing, self.seed, index, self.views))

        ahead = max(num_threads(), self.batch_size // self.views)
        for shard in shards:
            images = shard_range(manifest, shard)
            waiting: list[np.ndarray] = []
            for start in range(images.start, images.stop, ahead):
                for some in self.pool.map(views, range(start, min(images.stop, start + ahead))):
                    waiting += some
                while len(waiting) >= self.batch_size:
                    yield _to_batch(waiting[: self.batch_size])
                    del waiting[: self.batch_size]
            if waiting:
                yield _to_batch(waiting)

    def _shard(
        self, manifest: Manifest, shard: int, names: list[str], batches: Iterator[torch.Tensor], bar: tqdm[Any]
    ) -> None:
        images = shard_range(manifest, shard)
        forms = shard_files(manifest, shard, list(self.fields))
        arrays = {name: np.empty(*forms[name]) for name in names}
        flat = {n: arrays[n].reshape(-1, *forms[n][0][2:]) for n in names if n in self.fields}
        if "indices" in arrays:
            arrays["indices"][:] = np.arange(images.start, images.stop)
        if "labels" in arrays:
            assert self.source.labels is not None
            arrays["labels"][:] = self.source.labels[images.start : images.stop]
        done, total = 0, len(images) * self.views
        while done < total:
            batch = next(batches)
            for name, rows in flat.items():
                rows[done : done + len(batch)] = self._store(name, self._compute(self.fields[name], batch), rows.dtype)
            done += len(batch)
            bar.update(len(batch))
        place = shard_folder(self.folder, shard)
        if not place.exists():
            with atomic_folder(place) as temporary:
                for name, array in arrays.items():
                    save_array(temporary / f"{name}.npy", array)
        else:
            for name, array in arrays.items():
                with atomic_file(place / f"{name}.npy") as temporary:
                    save_array(temporary, array)

    @torch.no_grad()
    def _compute(self, field: CacheField, batch: torch.Tensor) -> np.ndarray:
        images = to_unit(batch.to(self.device))
        low = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        with low:
            result = field.compute(images)
        if result.is_floating_point():
            result = result.float()
        return np.asarray(result.cpu().numpy())

    def _store(self, name: str, values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        model = type(self.fields[name].model).__name__
        real = np.issubdtype(dtype, np.floating)
        if real and not np.isfinite(values).all():
            raise UserError(f"the {model} gives {name} that are not finite; check its weights, or use fp32.")
        limits = np.finfo(dtype) if real else np.iinfo(dtype)
        if values.size and not (limits.min <= values.min() and values.max() <= limits.max):
            raise UserError(
                f"the {model} gives {name} from {values.min()} to {values.max()}, which {dtype} cannot hold; choose another dtype."
            )
        return values.astype(dtype)


def _is_free(folder: Path) -> bool:
    """Whether a folder is missing or empty, but for a manifest that another process is writing at this moment."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(f.name == RUN or f.name.startswith(".manifest.json.") for f in folder.iterdir())


def _to_batch(views: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()
