"""The inversion itself: images in blocks, each block's conditions under Adam, everything else on the disk.

The generator is frozen, so that no image's condition depends on another image: a block of images is trained by itself, and
only its rows, their gradients and their two moments are ever in memory. Blocks take turns; at the end of a turn its rows
are committed to the table (`rcg.inversion.table`). Processes share out the blocks and need not know of each other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rcg.core.durations import in_words
from rcg.core.errors import UserError
from rcg.core.files import claimed, keep_lines, sweep
from rcg.core.parts import Share
from rcg.core.rng import derive_seed
from rcg.data.build import build_cache
from rcg.data.cache import Cache
from rcg.data.image_source import ImageSource
from rcg.data.layout import wait_for_shards
from rcg.inversion.frozen import FrozenGenerator
from rcg.inversion.settings import Inversion
from rcg.inversion.table import ConditionTable, Manifest, image_ids, is_table

SHARD = 256
"""Images whose codes lie in one file."""
ENCODED_AT_ONCE = 32
"""Images that frozen models encode together."""
PATIENCE_S = 1800.0
"""How long a process waits, without new codes, for those that the others compute."""


def invert(
    generator: FrozenGenerator,
    source: ImageSource,
    out: Path,
    how: Inversion,
    *,
    model: str,
    device: torch.device,
    bf16: bool = False,
    checkpointing: bool = False,
    progress: bool = True,
    watch: Callable[[int], None] = lambda turns: None,
) -> ConditionTable:
    """Learn a condition for every image of a source, as far as that is not done yet.

    A run that was killed goes on when called again, and with more `steps` a finished one does; the result is that of an
    unbroken run, bit for bit on a CPU.

    Args:
        generator: frozen.
        source: of images.
        out: folder of the table; codes are cached in `out/codes`, losses logged in `out/log-RANK.jsonl`.
        how: see `Inversion`.
        model: what the generator is called, for the record.
        device, bf16, checkpointing: see `FrozenGenerator.prepare`.
        progress: show a bar, and say once how long it takes.
        watch: called after each turn of a block with the number of turns that this process has done.

    Returns:
        The table.

    Raises:
        UserError: another inversion in `out`, or a loss that is not finite.
    """
    share = Share.from_environment()
    rank, world = share.rank, share.world
    generator.prepare(device, bf16, checkpointing)
    lr = generator.default_lr if how.lr is None else how.lr
    manifest: Manifest = {
        "format": "rcg-inversion",
        "version": 1,
        "kind": generator.kind,
        "model": model,
        "model_hash": generator.identity(),
        "shape": list(generator.shape),
        "count": len(source),
        "image_size": generator.image_size,
        "source": {"name": source.name, "fingerprint": source.fingerprint},
        "class_names": list(source.class_names),
        "settings": {
            "lr": lr,
            "betas": [how.beta1, how.beta2],
            "batch_size": how.batch_size,
            "seed": how.seed,
            "beginning": generator.beginning,
            "precision": "bf16" if bf16 else "fp32",
        },
        "steps": how.steps,
    }
    with claimed(out, shared=world > 1, run=manifest):
        if world == 1 and is_table(out):
            sweep(out)
        table = ConditionTable.create(out, manifest, image_ids(source), source.labels)
        blocks = list(blocks_of(len(table), how.batch_size))
        own = blocks[rank::world]
        for block in own:
            table.recover(block)
        codes = out / "codes"

        def left(some: list[slice]) -> bool:
            return any(int(table.steps[block.start]) < how.steps for block in some)

        if left(blocks):  # whose codes may be this process's to compute, even where none of them is its own
            build_cache(
                source,
                codes,
                generator.fields,
                generator.image_size,
                batch_size=ENCODED_AT_ONCE,
                device=device,
                progress=progress,
                command="rcg-invert",
                shard_size=SHARD,
            )
        if left(own):
            wait_for_shards(codes, list(generator.fields), PATIENCE_S)
            log = out / f"log-{rank:02d}.jsonl"
            _Run(generator, table, Cache(codes), how, lr, device, own, log, progress and rank == 0, watch).run()
    return table


def blocks_of(count: int, size: int) -> Iterator[slice]:
    """The rows 0 … count-1 in blocks of `size`, the last of which may be shorter."""
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


@dataclass
class _Run:
    generator: FrozenGenerator
    table: ConditionTable
    cache: Cache
    how: Inversion
    lr: float
    device: torch.device
    blocks: list[slice]
    log: Path
    progress: bool
    watch: Callable[[int], None]

    def run(self) -> None:
        # what a killed process logged but did not keep is done, and logged, again
        keep_lines(self.log, lambda line: line["step"] <= int(self.table.steps[line["rows"][0]]))
        todo = sum(self._left(block) for block in self.blocks)
        turns, begun = 0, time.perf_counter()
        with tqdm(total=todo, unit="step", desc="inverting", disable=not self.progress, mininterval=1.0) as bar:
            while behind := [block for block in self.blocks if self._left(block)]:
                least = min(int(self.table.steps[block.start]) for block in behind)
                for block in behind:
                    if int(self.table.steps[block.start]) >= least + self.how.turn_steps:
                        continue  # resumed in the middle of a round: the others catch up first
                    steps = min(self.how.turn_steps, self._left(block))
                    loss = self._turn(block, steps)
                    bar.update(steps)
                    bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
                    turns += 1
                    if turns == 1 and self.progress:
                        left = (time.perf_counter() - begun) / steps * (todo - steps)
                        if left > 120:
                            bar.write(f"This takes about {in_words(left)}; fewer --steps take less.")
                    self.watch(turns)

    def _left(self, block: slice) -> int:
        return max(0, self.how.steps - int(self.table.steps[block.start]))

    def _turn(self, block: slice, steps: int) -> float:
        """Train a block for some steps and commit it; returns the mean loss of an image and step."""
        table, device = self.table, self.device
        rows = np.arange(block.start, block.stop)
        begin = int(table.steps[block.start])
        seeds = [derive_seed(self.how.seed, 1, int(row)) for row in rows]
        batch = {k: v.to(device) for k, v in self.cache.batch(rows, np.zeros(len(rows), np.uint64)).items()}
        if begin == 0:
            first = self.generator.start(batch, seeds).detach().to(device)
            conditions = torch.nn.Parameter(first.clone())
        else:
            conditions = torch.nn.Parameter(_tensor(table.conditions[block], device))
        adam = torch.optim.Adam([conditions], self.lr, (self.how.beta1, self.how.beta2))
        if begin:
            adam.state[conditions] = {
                "step": torch.tensor(float(begin)),
                "exp_avg": _tensor(table.first[block], device),
                "exp_avg_sq": _tensor(table.second[block], device),
            }
        total = torch.zeros((), dtype=torch.float64, device=device)
        for step in range(begin, begin + steps):
            loss = self.generator.loss(batch, conditions, seeds, step)
            (conditions.grad,) = torch.autograd.grad(loss, [conditions])
            adam.step()
            total += loss.detach().double()
        mean = float(total) / (steps * len(rows))
        state = adam.state[conditions]
        arrays = [_array(x) for x in (conditions, state["exp_avg"], state["exp_avg_sq"])]
        if not np.isfinite(mean) or not all(np.isfinite(a).all() for a in arrays):
            raise UserError(
                f"the loss of the images {block.start} to {block.stop - 1} is not finite after step {begin}; nothing of it was "
                "kept: lower --lr or use --precision fp32, in another --out."
            )
        line = {"rows": [block.start, block.stop], "step": begin + steps, "loss": mean}
        with self.log.open("a") as file:  # before it is kept: see `run`
            file.write(json.dumps(line) + "\n")
        table.commit(block, begin + steps, *arrays)
        return mean


def _tensor(rows: np.ndarray, device: torch.device) -> Tensor:
    """A copy of rows of the table, on the device."""
    return torch.from_numpy(np.array(rows)).to(device).clone()


def _array(tensor: Tensor) -> np.ndarray:
    """float32 on the CPU."""
    found: np.ndarray = tensor.detach().float().cpu().numpy()
    return found
