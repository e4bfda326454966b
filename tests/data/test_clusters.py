"""Clusters in a cache: against scikit-learn's own numbers, the field's bookkeeping, and refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.data import clusters, layout
from rcg.data.cache import Cache
from rcg.data.clusters import CENTRES, add_clusters, cluster_counts
from rcg.data.layout import wait_for_shards
from rcg.data.sources import open_source
from tests.data.caches import contents, make, representations, tokens


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    make(open_source("shapes:n=40,size=8"), tmp_path / "cache", representations())
    return tmp_path / "cache"


def test_every_view_has_the_nearest_centre(cache: Path) -> None:
    add_clusters(cache, 5)
    data, centres = Cache(cache, ["representations", "clusters"]), np.load(cache / CENTRES)
    assert centres.shape == (5, 6)
    for view in range(data.views):
        rows = data.all("representations", view)
        naive = ((rows[:, None] - centres) ** 2).sum(-1).argmin(1)
        assert np.array_equal(data.all("clusters", view), naive)
    counts = cluster_counts(data)
    assert sum(counts) == 40
    assert counts == np.bincount(data.all("clusters"), minlength=5).tolist()
    batch = data.batch(np.array([3, 7]), np.array([1, 2], np.uint64))
    assert batch["clusters"].tolist() == [data.all("clusters", 1)[3], data.all("clusters", 2)[7]]


def test_centres_are_where_k_means_stops(cache: Path) -> None:
    """Each centre is the mean of its own: Lloyd's iteration has nothing left to do."""
    add_clusters(cache, 3, seed=1)
    data, centres = Cache(cache), np.load(cache / CENTRES)
    rows, own = data.all("representations"), data.all("clusters")
    means = np.stack([rows[own == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(centres, means, rtol=1e-3, atol=1e-4)


def test_again_is_nothing_and_lost_files_come_back(cache: Path) -> None:
    add_clusters(cache, 4)
    before = contents(cache)
    (cache / "shard-00002" / "clusters.npy").unlink()
    with pytest.raises(UserError, match="incomplete"):
        Cache(cache)
    add_clusters(cache, 4)
    assert contents(cache) == before


def test_fields_that_come_meanwhile_stay(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = clusters._fit

    def slow(*given: Any) -> np.ndarray:
        with pytest.raises(UserError, match="another process is writing"):  # alone, it would change the manifest, too
            make(open_source("shapes:n=40,size=8"), cache, tokens())
        for rank in (0, 1):
            make(open_source("shapes:n=40,size=8"), cache, tokens(), rank=rank, world=2)
        return fit(*given)

    monkeypatch.setattr(clusters, "_fit", slow)
    with pytest.raises(UserError, match="another process is writing"):
        add_clusters(cache, 4)
    add_clusters(cache, 4, command="rcg-cache --clusters 4", shared=True)
    assert set(Cache(cache).fields) == {"representations", "tokens", "clusters"}
    (cache / "shard-00002" / "clusters.npy").unlink()
    with pytest.raises(UserError, match="run `rcg-cache --clusters 4` again to finish it"):
        Cache(cache)


def test_waiting_for_the_shards_of_other_processes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, built = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        clock[0] += 1
        if clock[0] == 5:
            make(open_source("shapes:n=40,size=8"), cache, tokens(), rank=1, world=2)
            built.append(clock[0])

    monkeypatch.setattr(layout, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
    make(open_source("shapes:n=40,size=8"), cache, tokens(), rank=0, world=2)  # the folders are there from before
    with pytest.raises(UserError, match="4 shards of other processes are missing"):
        wait_for_shards(cache, ["tokens"], patience=3.5)
    wait_for_shards(cache, ["tokens"], patience=3.5)
    assert built == [5]
    assert Cache(cache).fields.keys() == {"representations", "tokens"}


def test_what_cannot_be(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only 40 images"):
        add_clusters(cache, 41)
    add_clusters(cache, 4)
    with pytest.raises(UserError, match="holds other clusters"):
        add_clusters(cache, 5)
    make(open_source("shapes:n=10,size=8"), tmp_path / "other", tokens())
    with pytest.raises(UserError, match="holds no representations"):
        add_clusters(tmp_path / "other", 2)
    with pytest.raises(UserError, match=r"holds no clusters.*--clusters K"):
        Cache(tmp_path / "other", ["clusters"])
