"""Captions as numbers, the same where they are learnt from and where they are asked about. A leaf."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def caption_bytes(texts: Sequence[str], length: int) -> np.ndarray:
    """uint8 [B, length]: the texts in UTF-8 (lone surrogates as "?"), cut off and padded with zeros."""
    made = np.zeros((len(texts), length), np.uint8)
    for row, text in zip(made, texts, strict=True):
        data = text.replace("\0", " ").encode(errors="replace")[:length]
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return made
