"""How the codebook learns, against hand-written oracles."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from rcg.image_gen.tokenizers.vq_codebook import CodebookTrainer
from tests.forked import both
from tests.waiting import NoWaiting


def clusters(count: int = 6, each: int = 50, dim: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Well-separated blobs [count*each, dim] and their centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = 10 * torch.randn(count, dim, generator=generator)
    return (centres[:, None] + 0.1 * torch.randn(count, each, dim, generator=generator)).reshape(-1, dim), centres


def nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    return torch.cdist(vectors, codes).argmin(1)


def test_start_separates_coinciding_codes() -> None:
    trainer, codes = CodebookTrainer(10, 2), torch.zeros(10, 2)
    trainer.start(codes, torch.randn(4, 2).repeat(5, 1))
    assert bool(trainer.started)
    assert len(codes.unique(dim=0)) == 10


def test_codes_are_moving_averages_of_what_chose_them() -> None:
    torch.manual_seed(1)
    trainer, codes = CodebookTrainer(5, 3, decay=0.8, revive_after=1000), torch.zeros(5, 3)
    trainer.start(codes, torch.randn(40, 3))
    counts, sums = trainer.counts.clone(), trainer.sums.clone()
    for _ in range(4):
        seen_counts, seen_sums = torch.zeros(5), torch.zeros(5, 3)
        for _ in range(2):  # two micro-batches a step
            latents = torch.randn(30, 3)
            ids = nearest(latents, codes)
            trainer.observe(latents, ids)
            for vector, i in zip(latents, ids, strict=True):
                seen_counts[i] += 1
                seen_sums[i] += vector
        counts, sums = 0.8 * counts + 0.2 * seen_counts, 0.8 * sums + 0.2 * seen_sums
        trainer.update(codes)
        torch.testing.assert_close(codes, sums / counts[:, None])


def test_an_unused_code_comes_back_on_a_latent_and_stays_alive() -> None:
    torch.manual_seed(0)
    vectors, _ = clusters(6)
    trainer, codes = CodebookTrainer(6, 4, decay=0.9, revive_after=3), torch.zeros(6, 4)
    trainer.start(codes, vectors)
    codes[2] = 1000.0
    trainer.counts[2], trainer.sums[2] = 1.0, 1000.0
    used = []
    for _ in range(8):
        trainer.observe(vectors, nearest(vectors, codes))
        trainer.update(codes)
        used.append(float(trainer.used))
    assert min(used) < 1  # it was dead for a while
    assert used[-1] == 1
    assert float(codes.abs().max()) < 100
    assert len(nearest(vectors, codes).unique()) == 6


def test_revival_waits_between_two_tries() -> None:
    trainer, codes = CodebookTrainer(4, 2, revive_after=3), torch.zeros(4, 2)
    trainer.start(codes, torch.randn(50, 2))
    moved = []
    for _ in range(12):
        before = codes[3].clone()
        trainer.observe(torch.randn(20, 2), torch.zeros(20, dtype=torch.int64))  # all choose code 0
        trainer.update(codes)
        moved.append(not torch.allclose(before, codes[3], atol=1e-4))
    assert [i for i, m in enumerate(moved) if m] == [2, 5, 8, 11]


def test_what_is_not_finite_is_left_out() -> None:
    trainer, codes = CodebookTrainer(4, 2), torch.zeros(4, 2)
    trainer.start(codes, torch.randn(50, 2))
    latents = torch.randn(20, 2)
    latents[3, 1] = float("nan")
    latents[5] = float("inf")
    counts = trainer.observe(latents, torch.zeros(20, dtype=torch.int64))
    trainer.update(codes)
    assert counts.sum() == 18
    assert torch.isfinite(codes).all()
    trainer.idle.fill_(trainer.revive_after)
    for _ in range(8):  # codes are revived on latents that are finite, or wait
        trainer.observe(latents, torch.zeros(20, dtype=torch.int64))
        trainer.update(codes)
        assert torch.isfinite(codes).all()


def test_revival_does_not_wait_for_the_device() -> None:
    with torch.device("meta"):
        trainer, codes, latents = CodebookTrainer(6, 2, revive_after=1), torch.zeros(6, 2), torch.zeros(4, 2)
        ids = torch.zeros(4, dtype=torch.int64)
    trainer.begun = True
    with NoWaiting():
        trainer.observe(latents, ids)
        trainer.update(codes)


def test_revival_puts_each_dead_code_on_a_latent_of_its_own() -> None:
    trainer, codes = CodebookTrainer(6, 2, decay=0.9, revive_after=1), torch.zeros(6, 2)
    trainer.start(codes, torch.randn(50, 2))
    latents = torch.randn(20, 2)
    torch.manual_seed(3)
    candidates = latents[torch.randperm(20)[:6]]
    order = torch.randperm(6)
    torch.manual_seed(3)
    trainer.observe(latents, torch.tensor([1] * 9 + [4] * 11))
    trainer.update(codes)
    dead = [0, 2, 3, 5]
    assert torch.equal(codes[dead], candidates[order[:4]])
    counts = trainer.counts[dead]
    assert (counts == counts[0]).all()
    assert torch.equal(trainer.sums[dead], counts[:, None] * codes[dead])
    assert trainer.grace.tolist() == [1, 0, 1, 1, 0, 1]


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/sync", rank=rank, world_size=2)
    torch.manual_seed(100 + rank)  # the processes draw differently
    vectors, _ = clusters(8, seed=rank)
    trainer, codes = CodebookTrainer(12, 4, decay=0.9, revive_after=2), torch.zeros(12, 4)
    trainer.start(codes, vectors)
    for _ in range(6):
        trainer.observe(vectors, nearest(vectors, codes))
        trainer.update(codes)
    torch.save({"codes": codes, **trainer.state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_agree(tmp_path: Path) -> None:
    both(_process, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    vectors = torch.cat([clusters(8, seed=rank)[0] for rank in range(2)])
    error = torch.cdist(vectors, first["codes"]).min(1).values.square().mean()
    assert float(error) < 0.5 * float(vectors.var(0).sum())  # codes serve the latents of both
