"""Caches of random numbers, with the library's layout.

Nothing is imported before one is written: `vs_reference_cells.py` measures what imports take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def write_cache(
    folder: Path,
    images: int,
    fields: Mapping[str, tuple[Sequence[int], int | None]],
    *,
    views: int = 1,
    per_shard: int | None = None,
    size: int = 224,
    augment: str = "none",
) -> None:
    """Write a cache, shard by shard.

    Args:
        folder: does not exist yet.
        images: how many.
        fields: name → shape of one view's values, and of how many codes they are (None: normally distributed numbers).
        views: of each image.
        per_shard: images in a shard; None: all in one.
        size, augment: what the manifest says of the views.
    """
    import numpy as np

    from rcg.core.files import write_json
    from rcg.data.layout import FORMAT, VERSION, save_array, shard_folder

    rng, per_shard = np.random.default_rng(0), per_shard or images
    starts = range(0, images, per_shard)
    for shard, start in enumerate(starts):
        indices = np.arange(start, min(images, start + per_shard))
        place = shard_folder(folder, shard)
        place.mkdir(parents=True)
        save_array(place / "indices.npy", indices)
        for name, (shape, codes) in fields.items():
            whole = (len(indices), views, *shape)
            values = rng.normal(size=whole).astype(np.float32) if codes is None else rng.integers(0, codes, whole)
            save_array(place / f"{name}.npy", values if codes is None else values.astype(np.uint16))
    said = {"model_class": "random", "model_hash": "", "precision": "fp32"}
    source = {"name": "random", "fingerprint": "random", "count": images, "labelled": False, "class_names": []}
    manifest = {
        "format": FORMAT, "version": VERSION, "source": {**source, "skipped": []}, "shard_size": per_shard,
        "shards": len(starts), "commands": {},
        "transform": {"size": size, "augment": augment, "crop_scale": 1.0, "views": views, "seed": 0},
        "fields": {
            name: {**said, "dtype": "float32" if codes is None else "uint16", "shape": list(shape)}
            for name, (shape, codes) in fields.items()
        },
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
