"""Images in .npz files, as guided-diffusion writes them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.eval.arrays import ArraySource, holds_images

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3)).astype(np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_and_labels(tmp_path: Path, save: object) -> None:
    labels = np.array([3, 3, 1, 1, 1, 9, 9])
    save(tmp_path / "x.npz", arr_0=PIXELS, arr_1=labels, mu=np.zeros(2))  # type: ignore[operator]
    source = ArraySource(tmp_path / "x.npz")
    assert len(source) == 7
    assert source.sizes.tolist() == [[6, 5]] * 7
    for i in (6, 0, 3):
        assert (np.asarray(source.image(i)) == PIXELS[i]).all()
    assert source.class_names == ["1", "3", "9"]
    assert source.labels is not None
    assert source.labels.tolist() == [1, 1, 0, 0, 0, 2, 2]
    assert holds_images(tmp_path / "x.npz")


def test_without_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", arr_0=PIXELS)
    assert ArraySource(tmp_path / "x.npz").labels is None


def test_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    assert not holds_images(path)
    with pytest.raises(UserError, match="cannot be read"):
        ArraySource(path)
    np.savez(path, mu=np.zeros(3))
    assert not holds_images(path)
    with pytest.raises(UserError, match="cannot be read"):
        ArraySource(path)
    for wrong in (PIXELS.astype(np.float32), PIXELS[..., :1], PIXELS[0], np.asfortranarray(PIXELS), PIXELS[:0]):
        np.savez(path, arr_0=wrong)
        with pytest.raises(UserError, match=r"arr_0 is .* but images are uint8"):
            ArraySource(path)
    np.savez(path, arr_0=PIXELS)
    source = ArraySource(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="ends before its image 6"):
        source.image(6)


def test_the_fingerprint_is_of_the_bytes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)

    def fingerprint(name: str, pixels: np.ndarray, labels: list[int], at: int) -> str:
        np.savez(tmp_path / name, arr_0=pixels, arr_1=np.array(labels))
        os.utime(tmp_path / name, (at, at))
        return ArraySource(tmp_path / name).fingerprint

    first = fingerprint("a.npz", images, [0, 1, 2], 1)
    assert fingerprint("b.npz", images, [0, 1, 2], 2) == first  # a copy
    assert fingerprint("a.npz", 255 - images, [0, 1, 2], 1) != first  # as large and as old
    assert fingerprint("a.npz", images, [0, 2, 1], 1) != first
