"""Random seeds that depend on what a sample *is*, never on when or where it is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """Mix non-negative integers (seed, epoch, index, …) into one well-spread 63-bit seed."""
    state = np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0]
    return int(state) >> 1


def sample_seeds(seed: int, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """One uint64 seed for each (epoch, index) pair, vectorised: a splitmix64 hash.

    Args:
        seed: the run's seed.
        epochs, indices: integer arrays of one shape.

    Returns:
        uint64 array of that shape.
    """
    counters = torch.from_numpy(epochs.astype(np.int64)) * _signed(0xD1B54A32D192ED03) + derive_seed(seed)
    places = torch.from_numpy(indices.astype(np.int64)) * _signed(0x9E3779B97F4A7C15)
    return _mix(counters + places).numpy().view(np.uint64)


def sample_generators(seed: int, start: int, count: int) -> list[torch.Generator]:
    """A CPU generator for each of the images `start … start+count-1` of `seed`.

    Image *i* draws from its own stream, so it is the same image whatever the batch size, process count or order.
    """
    return [torch.Generator().manual_seed(derive_seed(seed, i)) for i in range(start, start + count)]


def row_seeds(numbers: torch.Tensor) -> torch.Tensor:
    """A seed for each row of whole numbers int64 [B, …], non-negative int64 [B] on their device: equal rows, equal seeds."""
    rows = numbers.flatten(1)
    places = torch.arange(rows.shape[1], dtype=torch.int64, device=rows.device) * _signed(0x9E3779B97F4A7C15)
    return _shift(_mix(_mix(rows + places).sum(dim=1)), 1)


class Noise:
    """Random numbers of a batch by counter: what sample *i* gets follows from its seed, the draw and the place alone.

    Nothing is advanced and nothing is drawn one sample at a time, so that a sample's numbers depend neither on its batch
    nor on what was drawn before, and a GPU makes them where they are used. A number is a hash (splitmix64, Steele et
    al. 2014) of seed, draw and place, in integers: the uniforms are equal, bit for bit, on every machine.

    Args:
        seeds: one non-negative integer below 2**63 for each sample.
        device: where the numbers are to be.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        here = torch.tensor(list(seeds), dtype=torch.int64)
        here = here.pin_memory() if self.device.type == "cuda" else here  # from other memory, copying waits for the GPU
        self.seeds = here.to(self.device, non_blocking=True)

    @classmethod
    def of(cls, seeds: torch.Tensor) -> Noise:
        """That of seeds int64 [B], where they are."""
        noise = cls.__new__(cls)
        noise.device, noise.seeds = seeds.device, seeds
        return noise

    def __len__(self) -> int:
        return len(self.seeds)

    def generators(self) -> list[torch.Generator]:
        """A CPU generator for each sample, for libraries that take nothing else."""
        return [torch.Generator().manual_seed(seed) for seed in self.seeds.tolist()]

    def uniform(self, draw: int, count: int) -> torch.Tensor:
        """float64 [B, count] in [0, 1), multiples of 2**-53. `draw` numbers the draws of a sample, from 0."""
        return _shift(self._bits(draw, count), 11).to(torch.float64) * 2.0**-53

    def single(self, draw: int, count: int) -> torch.Tensor:
        """float32 [B, count] in [0, 1), multiples of 2**-24: the first bits of `uniform`."""
        return _shift(self._bits(draw, count), 40).to(torch.float32) * 2.0**-24

    def _bits(self, draw: int, count: int) -> torch.Tensor:
        places = torch.arange(count, dtype=torch.int64, device=self.device)
        state = _mix(_mix(self.seeds) + _signed(0x9E3779B97F4A7C15 * (draw + 1) % (1 << 64)))[:, None]
        return _mix(state + places * _signed(0xD1B54A32D192ED03))

    def normal(self, draw: int, count: int) -> torch.Tensor:
        """float32 [B, count], standard normal: the inverse distribution function of `uniform`."""
        centred = self.uniform(draw, count) + 2.0**-54
        return torch.special.ndtri(centred).float()


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser, on int64 with wrap-around."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)
