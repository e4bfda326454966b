"""The embedded set: the same for a seed, different otherwise, and worth training on."""

from __future__ import annotations

import time

import numpy as np
import pytest

from rcg.data.shapes import CLASS_NAMES, draw, labels
from rcg.data.sources import open_source


def test_the_same_pictures_for_a_seed() -> None:
    assert np.array_equal(draw(3, 17, 32), draw(3, 17, 32))
    assert not np.array_equal(draw(3, 17, 32), draw(4, 17, 32))
    assert not np.array_equal(draw(3, 17, 32), draw(3, 27, 32))


def test_pictures_are_those_of_this_version() -> None:
    """Fails when the drawing changes: then raise SHAPES_VERSION, and these figures."""
    coarse = [draw(0, i, 32).reshape(2, 16, 2, 16, 3).mean((1, 3, 4)).round().astype(int).tolist() for i in range(3)]
    expected = [[[176, 176], [128, 121]], [[79, 73], [50, 31]], [[97, 110], [100, 113]]]
    assert np.abs(np.array(coarse) - expected).max() <= 1, coarse


@pytest.mark.parametrize("index", range(12))
def test_a_scene_is_the_same_at_any_resolution(index: int) -> None:
    fine = draw(0, index, 128).reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(fine - draw(0, index, 32)).mean() < 4
    assert draw(0, index, 33).shape == (33, 33, 3)


def test_classes_differ_and_pictures_vary() -> None:
    source = open_source("shapes:n=40,size=24,seed=1")
    assert source.class_names == list(CLASS_NAMES)
    assert source.labels is not None
    assert np.array_equal(np.bincount(source.labels), [4] * 10)
    assert np.array_equal(labels(40), source.labels)
    pictures = np.stack([np.asarray(source.image(i), np.float32) for i in range(40)])
    assert pictures.std(0).mean() > 40  # no two alike: levels of 255
    distances = np.abs(pictures[:, None] - pictures[None]).mean((2, 3, 4)) + 999 * np.eye(40)
    assert distances.min() > 8
    assert (pictures.std((1, 2, 3)) > 8).all()  # none is empty


def test_specs_and_fingerprints() -> None:
    specs = ["shapes", "shapes:n=7", "shapes:size=40", "shapes:seed=1"]
    assert len({open_source(spec).fingerprint for spec in specs}) == 4
    assert open_source("shapes:seed=0,size=32,n=2000").fingerprint == open_source("shapes").fingerprint
    assert open_source("shapes").image(5).size == (32, 32)


def test_drawing_is_quick() -> None:
    start = time.process_time()
    for i in range(100):
        draw(0, i, 32)
    assert (time.process_time() - start) / 100 < 1 / 250  # 1,800 a second on an idle core of 2023; much slack
