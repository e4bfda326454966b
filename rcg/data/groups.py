"""Batches of captions, each with several of its images: what multi-positive training eats."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from rcg.core import captions
from rcg.core.errors import UserError
from rcg.core.rng import sample_seeds
from rcg.data.images import ImageDataset


class GroupedDataset:
    """A `BatchDataset` whose samples are groups (captions): some images of each, drawn anew every time.

    Batches hold `images` uint8 [B, m, 3, size, size], `identities` int64 [B] (equal where captions are, see
    `Groups.identities`) and, with `caption_bytes`, `captions` uint8 [B, caption_bytes]: UTF-8, cut off, padded with 0.

    Args:
        images: of a source that has groups.
        count: m, images of a group in a sample. Distinct ones; a group with fewer gives some of them again.
        caption_bytes: length of the captions; 0 leaves them out.

    Raises:
        UserError: the source has no groups, or, while m is above 1, a single one or all of one image, or captions are wanted
            and missing.
    """

    def __init__(self, images: ImageDataset, count: int, caption_bytes: int = 0) -> None:
        groups = images.source.groups()
        if groups is None:
            raise UserError(
                f"{images.source.name} does not say which images belong together; give shards of rcg-synthesize, or a "
                "folder with files key.0.jpg, key.1.jpg, … of each caption, or train with --method simclr or moco-v3."
            )
        self.images = images
        self.count = count
        order = np.argsort(groups.numbers, kind="stable")
        sizes = np.bincount(groups.numbers)
        self._members = np.split(order, np.cumsum(sizes)[:-1])
        if count > 1 and sizes.max() < 2:
            raise UserError(
                f"no caption in {images.source.name} has more than one image; train with --method simclr or moco-v3."
            )
        self.identities = groups.identities()
        self._captions: np.ndarray | None = None
        if caption_bytes:
            if missing := [key for key, text in zip(groups.keys, groups.captions, strict=True) if not text]:
                raise UserError(
                    f"{len(missing)} of {len(groups.keys)} groups in {images.source.name} have no caption (the first is "
                    f"{missing[0]}); put one into key.json or key.txt, or choose a method without language."
                )
            self._captions = captions.caption_bytes([str(text) for text in groups.captions], caption_bytes)
        if count > 1 and len(np.unique(self.identities)) < 2:
            raise UserError(
                f"all images of {images.source.name} belong to one caption, so that there is nothing to tell apart; give more "
                "captions, or train with --method simclr or moco-v3."
            )
        digest = hashlib.sha256(f"{images.fingerprint} {count} {caption_bytes}".encode())
        digest.update(groups.numbers.astype("<i8").tobytes() + self.identities.astype("<i8").tobytes())
        digest.update(b"" if self._captions is None else self._captions.tobytes())
        self.fingerprint = digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._members)

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, torch.Tensor]:
        """See `BatchDataset.batch`; sample j depends on `indices[j]` and `seeds[j]` only."""
        chosen = np.empty((len(indices), self.count), np.int64)
        for row, index, seed in zip(chosen, indices, seeds, strict=True):
            members = self._members[index]
            # a random order of the members, and again from its start where they are too few
            places = sample_seeds(int(seed) >> 1, np.zeros(len(members), np.int64), np.arange(len(members)))
            row[:] = np.resize(members[np.argsort(places, kind="stable")], self.count)
        flat = chosen.reshape(-1)
        found = self.images.batch(flat, sample_seeds(0, np.repeat(seeds.astype(np.int64), self.count), flat))["images"]
        batch = {
            "images": found.unflatten(0, chosen.shape),
            "identities": torch.from_numpy(self.identities[indices]),
        }
        if self._captions is not None:
            batch["captions"] = torch.from_numpy(self._captions[indices])
        return batch
