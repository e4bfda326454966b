"""k-means: it finds clusters, gets better by the round, and leaves none empty."""

from __future__ import annotations

import torch

from rcg.core.kmeans import kmeans, nearest
from tests.rdm.data import modes


def test_it_finds_the_clusters() -> None:
    g = torch.Generator().manual_seed(0)
    centres = 10 * torch.eye(6)
    vectors = (centres[:, None] + 0.1 * torch.randn(6, 50, 6, generator=g)).flatten(0, 1)
    torch.manual_seed(0)
    found, ids = kmeans(vectors, 6)
    assert sorted(torch.cdist(centres, found).argmin(1).tolist()) == list(range(6))
    assert float(torch.cdist(centres, found).min(1).values.max()) < 0.1
    assert ids.bincount().tolist() == [50] * 6


def test_rounds_make_it_better_and_the_generator_decides() -> None:
    x = torch.from_numpy(modes(3000, 8, 0).vectors)

    def error(rounds: int) -> float:
        centres, codes = kmeans(x, 16, rounds, torch.Generator().manual_seed(0))
        return float((x - centres[codes]).square().sum(1).mean())

    assert error(25) < error(3) < error(0)
    torch.rand(3)  # the global state does not matter
    one, other = (kmeans(x, 16, 5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def test_vectors_far_from_zero_keep_their_digits() -> None:
    g = torch.Generator().manual_seed(0)
    centres, vectors = (0.05 * torch.randn(n, 64, generator=g) + 30 for n in (20, 500))
    ids, distances = nearest(vectors, centres)
    exact = torch.cdist(vectors.double(), centres.double()).square()
    assert torch.equal(ids, exact.argmin(1))
    torch.testing.assert_close(distances, exact.min(1).values.float(), rtol=1e-3, atol=0)


def test_no_cluster_stays_empty() -> None:
    """Where many vectors coincide, so do centres at the start; they are then put to use."""
    x = torch.cat([torch.zeros(90, 2), torch.arange(20.0).view(10, 2)])
    centres, codes = kmeans(x, 8)
    assert codes.unique().numel() == 8
    assert float((x - centres[codes]).abs().max()) < 3


def test_fewer_vectors_than_clusters() -> None:
    vectors = torch.randn(3, 2)
    found, ids = kmeans(vectors, 8)
    assert torch.isfinite(found).all()
    assert len(ids) == 3
    assert float(torch.cdist(vectors, found).min(1).values.max()) < 1e-6
