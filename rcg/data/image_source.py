"""What every set of images is to those who read it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from PIL import Image


class ImageSource(ABC):
    """Numbered RGB images, in an order that never changes, and perhaps a class for each."""

    name: str
    """A name to show to people."""
    fingerprint: str
    """Changes when the usable images, their order or their relative paths change; not when the folder moves."""
    labels: np.ndarray | None
    """int64 [N] in [0, len(class_names)), or None."""
    class_names: list[str]
    """Sorted; empty without labels."""
    skipped: list[tuple[str, str]]
    """(path, reason) of files that looked like images but cannot be used."""
    sizes: np.ndarray
    """int32 [N, 2]: width and height of each image, in pixels."""

    def __len__(self) -> int:
        return len(self.sizes)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Image `index` as an upright RGB picture of its own size."""
