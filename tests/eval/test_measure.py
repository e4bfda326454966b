"""One pass over a set: the same in any batches and any number of processes, in constant memory."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.parts import Share
from rcg.eval.features import FeatureExtractor, Outputs, extract
from rcg.eval.images import StreamImages
from rcg.eval.measure import LEAF, MOST_LEAVES, Change, Wanted, leaf_of, measure
from rcg.eval.processes import Crew, Processes
from rcg.eval.references import ImageStats, load_stats, save_stats

ALL = Wanted(sample=40, spatial=True, score=True)
COUNT = 5 * LEAF + 11


class Small(FeatureExtractor):
    """Everything an extractor may give, of a convolution whose bits depend on the batch size of its kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.dim, self.has_logits, self.spatial_dim, self.weights_hash = "small", 24, True, 96, "-"
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 24, 3, stride=2, bias=False)
        self.head = torch.nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Outputs:
        x = self.conv(images.float() / 255).relu()
        pooled = x.mean((2, 3))
        return Outputs(pooled, self.head(pooled * 9), x[:, :, ::4, ::4].flatten(1))


def images() -> Tensor:
    return torch.randint(0, 256, (COUNT, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def measured(batch: int, crew: Crew | None = None) -> ImageStats:
    stream = StreamImages(images().split(batch), COUNT)
    return measure(Small(), stream, ALL, batch_size=batch, crew=crew, progress=False)


def arrays(stats: ImageStats) -> list[np.ndarray]:
    assert stats.spatial is not None
    assert stats.features is not None
    assert stats.inception_score is not None
    return [stats.mu, stats.sigma, stats.features, *stats.spatial, np.array(stats.inception_score)]


def test_figures_are_those_of_all_features() -> None:
    found = measured(20)
    whole = extract(Small(), [images()])
    assert found.n == COUNT
    assert found.mu == pytest.approx(whole.features.mean(0, dtype=np.float64), rel=1e-12)
    assert found.sigma == pytest.approx(np.cov(whole.features.astype(np.float64), rowvar=False), rel=1e-9)
    assert found.features is not None
    assert found.features.shape == (40, 24)
    assert {tuple(row) for row in found.features} <= {tuple(row) for row in whole.features}
    assert (found.origin.size, found.origin.extractor, found.origin.precision) == ("16×16", "small", "fp32")


def test_bits_do_not_depend_on_the_batch_size() -> None:
    whole = arrays(measured(COUNT))
    for batch in (1, 7, 16, 50):
        for one, other in zip(arrays(measured(batch)), whole, strict=True):
            assert (one == other).all()


WORKER = """
import sys
from pathlib import Path
from rcg.eval.processes import Crew, Processes
from rcg.eval.references import save_stats
from tests.eval.test_measure import measured
processes = Processes.from_environment()
found = measured(20, processes)
save_stats(Path(sys.argv[1]) / f"{processes.rank}.npz", found)
(Path(sys.argv[1]) / f"{processes.rank}.txt").write_text(repr(found.inception_score))
"""


class Together(Processes):
    """Process `rank` of 2: the second one leaves what it has and goes, the first one finds it."""

    left: ClassVar[list[Any]] = []

    def gather(self, own: Any) -> list[Any]:
        if self.rank:
            self.left.append(own)
            raise InterruptedError
        return [own, *self.left]


def same(found: ImageStats, alone: ImageStats) -> None:
    """To the bit."""
    assert found.n == COUNT
    for one, other in zip(arrays(found), arrays(alone), strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("world", [2, 3, 4, 7])
def test_parts_give_the_bits_of_the_whole(world: int) -> None:
    Together.left.clear()
    for rank in range(1, world):
        with pytest.raises(InterruptedError):
            measured(20, Together(rank, world))
    same(measured(20, Together(0, world)), measured(50))


def test_parts_in_any_order_give_the_bits_of_the_whole() -> None:
    class Shuffled(Processes):
        """Workers who are given the parts, and whose results come as they like."""

        several = True

        def each(self, work: Any, pieces: int, images: int | None, label: str | None) -> Any:
            shares = [Share(rank, pieces) for rank in range(pieces)]
            made = [pickle.loads(pickle.dumps(work))(share, lambda n: None) for share in shares]
            # neighbours are found in the order of the stream; sums and samples may come in any
            yield from (made[i] for i in np.random.default_rng(3).permutation(pieces))

    same(measured(20, Shuffled()), measured(50))


def test_parts_are_not_all_held_at_once() -> None:
    """An engine hands out tens of them, with covariances of 32 MiB in each."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class OneByOne(Processes):
        several = True

        def each(self, work: Any, pieces: int, images: int | None, label: str | None) -> Any:
            nonlocal most
            for rank in range(pieces):
                made = work(Share(rank, pieces), lambda n: None)
                alive.add(made)
                most = max(most, len(alive))
                yield made

    same(measured(20, OneByOne()), measured(50))
    assert most <= 3


def test_leaves() -> None:
    assert leaf_of(1) == leaf_of(LEAF * MOST_LEAVES) == LEAF
    assert leaf_of(LEAF * MOST_LEAVES + 1) == 2 * LEAF
    assert 128 <= 10**8 / leaf_of(10**8) <= MOST_LEAVES


def test_neighbours_are_found_among_all_parts() -> None:
    asked = measured(50).features
    assert asked is not None
    wanted = Wanted(near=asked[::3], neighbors=2)

    def found(crew: Processes) -> ImageStats:
        stream = StreamImages([images()], COUNT)
        return measure(Small(), stream, wanted, crew=crew, progress=False)

    Together.left.clear()
    with pytest.raises(InterruptedError):
        found(Together(1, 2))
    parts, whole = found(Together(0, 2)).neighbors, found(Processes()).neighbors
    Together.left.clear()
    assert parts is not None
    assert whole is not None
    assert (whole.distances[:, 0] == 0).all()
    assert (parts.numbers == whole.numbers).all()
    np.testing.assert_allclose(parts.distances, whole.distances, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_two_processes_give_the_number_of_one(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    place = f"file://{tmp_path / 'meeting'}"
    code = (
        f"import torch.distributed as d; d.init_process_group('gloo', init_method={place!r}, rank={{}}, world_size=2)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(rank) + WORKER, str(tmp_path)],
            cwd=root,
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    for rank in range(2):
        score = [float(x) for x in (tmp_path / f"{rank}.txt").read_text().strip("()").split(",")]
        same(replace(load_stats(tmp_path / f"{rank}.npz"), inception_score=tuple(score)), measured(20))


def test_what_is_not_wanted_is_not_kept(tmp_path: Path) -> None:
    found = measure(Small(), StreamImages(images().split(20)), Wanted(), progress=False)
    assert found.features is found.spatial is found.inception_score is None
    save_stats(tmp_path / "s.npz", found)
    assert (load_stats(tmp_path / "s.npz").mu == found.mu).all()


def test_what_bf16_changes_is_told_by_whoever_has_the_first_images() -> None:
    told: list[Change] = []
    stream = StreamImages([images()], COUNT)
    measure(Small(), stream, Wanted(), precision="bf16", on_change=told.append, progress=False)
    assert [change.images for change in told] == [16]
    assert 0 < told[0].share < 0.05
    measure(Small(), stream, Wanted(), on_change=told.append, progress=False)
    assert len(told) == 1


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(stream: StreamImages, crew: Processes | None = None) -> None:
        measure(Small(), stream, Wanted(), progress=False, crew=crew)

    with pytest.raises(UserError, match="does not say how many images"):
        run(StreamImages([images()]), Processes(0, 2))
    with pytest.raises(UserError, match=f"gave {COUNT} images and not {COUNT + 9}"):
        run(StreamImages([images()], COUNT + 9))
    with pytest.raises(UserError, match="differ in size"):
        run(StreamImages([images(), images()[:, :, :8, :8]]))
    for few in (0, 1):
        with pytest.raises(UserError, match=f"at least 2 images; photos has {few}"):
            run(StreamImages([images()[:few]], name="photos"))
    with pytest.raises(ValueError, match="uint8"):
        run(StreamImages([images().float()]))
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(UserError, match="must be whole numbers"):
        Processes.from_environment()
