"""Classes without labels: k-means over the representations in a cache, kept in it as the field `clusters`.

A generator or an RDM trained with condition "cluster" takes their numbers as classes (C-EDM, arXiv 2403.00570).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from rcg.core.arrays import load_array
from rcg.core.errors import UserError
from rcg.core.files import atomic_file, claimed, write_json
from rcg.core.kmeans import nearest
from rcg.data.cache import Cache
from rcg.data.layout import Field, missing_files, read_manifest, save_array, shard_folder

CENTRES = "clusters.npy"
"""float32 [K, D], in the cache's folder."""
FITTED_ROWS = 100_000
"""Representations, at most, on which k-means works."""
ROUNDS = 100
AGAIN = "delete it and run rcg-cache --clusters again"


def add_clusters(
    folder: str | Path, count: int, seed: int = 0, *, command: str | None = None, shared: bool = False
) -> None:
    """Find clusters among a complete cache's representations and give each view of each image the number of its own.

    Nothing is done where the cache has as many clusters of the same representations already.

    Args:
        folder: the cache.
        count: K, the number of clusters.
        seed: of k-means++ and of the rows that it works on, where there are many.
        command: what to tell the user to run if clusters are found missing.
        shared: whether this is one of the processes that have made the cache; the others may be about to end.

    Raises:
        UserError: no representations, fewer images than clusters, the cache has other clusters, or another process is
            writing into it.
    """
    with claimed(Path(folder), shared):
        _add(Path(folder), count, seed, command)


def _add(folder: Path, count: int, seed: int, command: str | None) -> None:
    cache, manifest = Cache(folder, ["representations"]), read_manifest(folder)
    if count > len(cache):
        raise UserError(f"{count} clusters were asked for, but there are only {len(cache)} images; ask for fewer.")
    asked = f"{manifest['fields']['representations']['model_hash']}-{count}-{seed}"
    field: Field = {
        "model_class": "KMeans",
        "model_hash": hashlib.sha256(asked.encode()).hexdigest()[:16],
        "precision": "fp32",
        "dtype": "int32",
        "shape": [],
    }
    held = manifest["fields"].get("clusters")
    if held is not None and held != field:
        raise UserError(
            f"{folder} holds other clusters (their number, seed or representations differ); make another cache for these."
        )
    manifest["fields"]["clusters"] = field
    todo = [shard for shard in range(manifest["shards"]) if missing_files(folder, manifest, shard, ["clusters"])]
    if held is None or not (folder / CENTRES).exists():
        centres = _fit(cache, count, seed)
        with atomic_file(folder / CENTRES) as temporary:
            save_array(temporary, centres)
        todo = list(range(manifest["shards"]))
    elif todo:
        centres = load_array(folder / CENTRES, AGAIN, dtype="float32")
    for shard in todo:
        place = shard_folder(folder, shard)
        rows = load_array(place / "representations.npy", AGAIN).astype(np.float32)
        with atomic_file(place / "clusters.npy") as temporary:
            ids = nearest(torch.from_numpy(rows).flatten(0, -2), torch.from_numpy(centres))[0]
            save_array(temporary, ids.numpy().astype(np.int32).reshape(rows.shape[:-1]))
    if held is None:
        manifest = read_manifest(folder)  # other fields may have come meanwhile
        manifest["fields"]["clusters"], manifest["commands"]["clusters"] = field, command
        write_json(folder / "manifest.json", manifest)


def _fit(cache: Cache, count: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    rows = cache.all("representations")
    if len(rows) > FITTED_ROWS:
        rows = rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:FITTED_ROWS])]
    found = KMeans(count, init="k-means++", n_init=1, max_iter=ROUNDS, random_state=seed % 2**32).fit(rows)
    return np.asarray(found.cluster_centers_, np.float32)


def cluster_counts(cache: Cache) -> list[int]:
    """How many images each cluster has, by their first views; its length is the number of clusters."""
    clusters = len(load_array(cache.folder / CENTRES, AGAIN))
    return np.bincount(cache.all("clusters"), minlength=clusters).tolist()
