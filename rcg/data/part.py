"""Some images of a source as a source of their own, so that others can be kept out of everything."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from rcg.data.image_source import Groups, ImageSource


class Part(ImageSource):
    """The images `indices` of a source, in that order; with its classes, even where none of an image is left.

    Args:
        source: the whole.
        indices: int64 [N], which images.
        name: shown to people, behind the source's own.
    """

    def __init__(self, source: ImageSource, indices: np.ndarray, name: str) -> None:
        self.source = source
        self.indices = indices.astype(np.int64)
        self.name = f"{source.name} ({name})"
        digest = hashlib.sha256(source.fingerprint.encode() + self.indices.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()[:32]
        self.labels = None if source.labels is None else source.labels[self.indices]
        self.class_names = source.class_names
        self.skipped = source.skipped
        self.sizes = source.sizes[self.indices]

    def label_digest(self) -> str:
        """See `ImageSource.label_digest`."""
        return self.source.label_digest()

    def groups(self) -> Groups | None:
        """See `ImageSource.groups`."""
        if (whole := self.source.groups()) is None:
            return None
        kept, numbers = np.unique(whole.numbers[self.indices], return_inverse=True)
        return Groups(numbers, [whole.keys[i] for i in kept], [whole.captions[i] for i in kept])

    def image(self, index: int) -> Image.Image:
        """See `ImageSource.image`."""
        return self.source.image(int(self.indices[index]))
