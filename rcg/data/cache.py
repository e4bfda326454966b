"""The cache: what frozen models computed from K views of every image, so that training never runs them.

A cache is a folder:

    manifest.json                   what it was made from and how (format, source, transform, fields, shards)
    shard-00000/labels.npy          int64 [n] (only with labels)
    shard-00000/indices.npy         int64 [n], numbers of the images in their source
    shard-00000/<field>.npy         [n, K, *shape] of the field's dtype

`build_cache` writes it; `Cache` reads it. Rows are read by their position in the files, so that memory does not grow
with the number of images (the pages of a memory map would be counted as the process's own).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rcg.core.arrays import load_array
from rcg.core.errors import UserError
from rcg.core.files import encoding_hash
from rcg.data.blobs import LocalBlob
from rcg.data.build import CacheField, build_cache
from rcg.data.layout import (
    HEADER,
    Field,
    Manifest,
    file_state,
    is_cache,
    read_manifest,
    shard_files,
    shard_folder,
    shard_range,
    shards_at_hand,
)

__all__ = ["Cache", "CacheField", "build_cache", "is_cache"]


class Cache:
    """A `BatchDataset` over a complete cache.

    Batches hold each field (floating-point ones as float32, uint8 as they are, other integers as int64, [B, *shape]),
    `indices` int64 [B] and, where the source has them, `labels` int64 [B]. Which of the K views of an image is taken
    follows from its seed; it is the same view in all fields. Threads and processes may share it.

    Args:
        folder: the cache.
        fields: the fields to read and to be particular about; default all. The fingerprint covers these only, so a
            field that is added later does not disturb a run that does not use it.

    Raises:
        UserError: not a cache, a field is absent, it is incomplete, or a file of it is damaged.
    """

    def __init__(self, folder: str | Path, fields: Sequence[str] | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._names = list(self.manifest["fields"]) if fields is None else list(fields)
        self.fields: dict[str, tuple[int, ...]] = {n: tuple(self._describe(n)["shape"]) for n in self._names}
        self.views: int = self.manifest["transform"]["views"]
        self.class_names: list[str] = self.manifest["source"]["class_names"]
        self.num_classes = len(self.class_names)
        self._shard_size: int = self.manifest["shard_size"]
        self._shards: int = self.manifest["shards"]
        self._check()
        self.labels: np.ndarray | None = self._load_labels()
        self._blobs: dict[tuple[int, str], LocalBlob] = {}
        identity: dict[str, Any] = {
            "source": self.manifest["source"]["fingerprint"],
            "transform": self.manifest["transform"],
            "fields": {name: self.manifest["fields"][name] for name in sorted(self._names)},
        }
        if labels := self.manifest["source"].get("label_digest"):
            identity["labels"] = labels
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return int(self.manifest["source"]["count"])

    def _describe(self, name: str) -> Field:
        return find_field(self.folder, self.manifest, name)

    def _again(self, field: str | None = None) -> str:
        commands = self.manifest["commands"]
        command = commands.get(field or "") or next(filter(None, map(commands.get, self._names)), None)
        return f"run `{command}` again" if command else "run the command that makes it again"

    def _check(self) -> None:
        at_hand = shards_at_hand(self.folder, self.manifest)
        incomplete, lacking = self._shards - len(at_hand), None
        for shard in at_hand:
            folder = shard_folder(self.folder, shard)
            files = shard_files(self.manifest, shard, self._names)
            states = {name: file_state(folder / f"{name}.npy", *form) for name, form in files.items()}
            for name, state in states.items():
                if state == "damaged":
                    raise UserError(
                        f"the file {folder / name}.npy of the cache is damaged (it has the wrong size); "
                        f"{self._again(name)} to make it anew."
                    )
                if state == "missing":
                    lacking = name
            incomplete += "missing" in states.values()
        if incomplete:
            raise UserError(
                f"the cache {self.folder} is incomplete ({incomplete} of {self._shards} shards lack something); "
                f"{self._again(lacking)} to finish it."
            )

    def _load_labels(self) -> np.ndarray | None:
        parts = []
        for shard in range(self._shards):
            folder, images = shard_folder(self.folder, shard), shard_range(self.manifest, shard)
            numbers = load_array(folder / "indices.npy", f"{self._again()} to make it anew")
            if not np.array_equal(numbers, np.arange(images.start, images.stop)):
                raise UserError(f"the shard {folder} is not part of this cache; remove it and {self._again()}.")
            if self.manifest["source"]["labelled"]:
                found = load_array(
                    folder / "labels.npy", f"{self._again()} to make it anew", shape=(len(images),), dtype="int64"
                )
                if len(found) and not 0 <= found.min() <= found.max() < self.num_classes:
                    raise UserError(
                        f"{folder / 'labels.npy'} is damaged (classes that there are not); {self._again()}."
                    )
                parts.append(found)
        return np.concatenate(parts) if parts else None

    def require(self, field: str, model: nn.Module | None = None) -> None:
        """Check that the cache holds a field, computed by the very model that is given.

        Raises:
            UserError: it does not.
        """
        find_field(self.folder, self.manifest, field, model)

    def _blob(self, shard: int, name: str) -> LocalBlob:
        if (shard, name) not in self._blobs:
            self._blobs[shard, name] = LocalBlob(shard_folder(self.folder, shard) / f"{name}.npy")
        return self._blobs[shard, name]

    def read(self, field: str, indices: np.ndarray, views: np.ndarray) -> np.ndarray:
        """The rows of a field for images and views, as stored.

        Args:
            field: its name.
            indices, views: integers [B], in [0, len(self)) and [0, self.views).

        Returns:
            [B, *shape] of the field's stored dtype.

        Raises:
            UserError: a file cannot be read, or ends early.
        """
        described = self._describe(field)
        rows = np.empty((len(indices), *described["shape"]), described["dtype"])
        raw = rows.reshape(len(rows), math.prod(described["shape"])).view(np.uint8)
        length = raw.shape[1]
        for place, index, view in zip(raw, indices.tolist(), views.tolist(), strict=True):
            shard, row = divmod(index, self._shard_size)
            try:
                data = self._blob(shard, field).read(HEADER + (row * self.views + view) * length, length)
            except OSError as e:
                raise UserError(
                    f"the file {shard_folder(self.folder, shard) / field}.npy of the cache cannot be read "
                    f"({e.strerror or e}); {self._again(field)} to make it anew."
                ) from None
            place[:] = np.frombuffer(data, np.uint8)
        return rows

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, torch.Tensor]:
        """See `BatchDataset.batch`; sample j depends on `indices[j]` and `seeds[j]` only."""
        views = (seeds.astype(np.uint64) % np.uint64(self.views)).astype(np.int64)
        batch = {name: _tensor(self.read(name, indices, views)) for name in self._names}
        batch["indices"] = torch.from_numpy(np.array(indices, np.int64))
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[indices])
        return batch

    def all(self, field: str, view: int = 0, limit: int | None = None) -> np.ndarray:
        """One view of all images, or of the first `limit`: [N, *shape], float32, uint8 or int64.

        Raises:
            UserError: there is no such field or view.
        """
        described = self._describe(field)
        if not 0 <= view < self.views:
            raise UserError(f"the cache {self.folder} has views 0 to {self.views - 1}, but view {view} was asked for.")
        count = len(self) if limit is None else min(limit, len(self))
        result = np.empty((count, *described["shape"]), _wide(described["dtype"]))
        for start in range(0, count, 4096):
            indices = np.arange(start, min(count, start + 4096))
            result[start : start + 4096] = self.read(field, indices, np.full_like(indices, view))
        return result


def find_field(folder: Path, manifest: Manifest, name: str, model: nn.Module | None = None) -> Field:
    """What a cache, complete or not, says of a field; computed by the very model that is given.

    Raises:
        UserError: it holds none of that name, or another model's.
    """
    fields = manifest["fields"]
    if name not in fields:
        flag = {
            "representations": "--encoder",
            "tokens": "--tokenizer",
            "latents": "--tokenizer",
            "images": "--images",
            "clusters": "--clusters K",
        }.get(name)
        how = f"add them with rcg-cache --out {folder} … {flag}" if flag else "make a cache that has them"
        raise UserError(f"the cache {folder} holds no {name} (it has {', '.join(fields)}); {how}.")
    described = fields[name]
    if model is not None and (found := encoding_hash(model)) != described["model_hash"]:
        raise UserError(
            f"the {name} in the cache {folder} were computed by another {described['model_class']} "
            f"({described['model_hash']}) than the {type(model).__name__} given ({found}); give that model, or make "
            "a cache in another folder with this one."
        )
    return described


def _wide(dtype: str) -> type[np.generic]:
    if np.dtype(dtype) == np.uint8:
        return np.uint8
    return np.float32 if np.issubdtype(np.dtype(dtype), np.floating) else np.int64


def _tensor(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows.astype(_wide(rows.dtype.str), copy=False))
