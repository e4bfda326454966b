"""Some images of a source as a source."""

from __future__ import annotations

import numpy as np

from rcg.data.part import Part
from rcg.data.sources import open_source


def test_a_part_has_the_images_it_is_asked_for() -> None:
    whole = open_source("shapes:n=30,size=16,seed=0")
    part = Part(whole, np.array([3, 17, 29]), "three")
    assert len(part) == 3
    for i, index in enumerate((3, 17, 29)):
        assert part.image(i).tobytes() == whole.image(index).tobytes()
    assert part.labels is not None
    assert whole.labels is not None
    assert part.labels.tolist() == whole.labels[[3, 17, 29]].tolist()
    assert part.class_names == whole.class_names
    assert part.sizes.shape == (3, 2)
    assert part.name.endswith("(three)")


def test_its_fingerprint_tells_parts_and_sources_apart() -> None:
    a, b = open_source("shapes:n=30,size=16,seed=0"), open_source("shapes:n=30,size=16,seed=1")
    parts = [Part(a, np.arange(5), "x"), Part(a, np.arange(6), "x"), Part(b, np.arange(5), "x"), a]
    assert len({part.fingerprint for part in parts}) == 4
    assert Part(a, np.arange(5), "y").fingerprint == parts[0].fingerprint
