"""One measurement of `benchmarks/vs_reference.py`, in a process of its own: `python vs_reference_cells.py CELL`.

CELL is a `Cell` as JSON. What was measured is written, as JSON, to the cell's `result` file. Neither program is
imported at the top: what an import takes is measured, too.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from fake_cache import write_cache
from machine import page_faults, peak_mib

GUIDANCE = {"sampling": 0.0, "guided": 1.0, "load": 0.0}
"""The reference's `cfg`: our `guidance_scale` less 1."""
OURS: dict[str, dict[str, Any]] = {
    "default": {},
    "ddim": {},  # the default, but for the RDM's solver
    "fp32": {"precision": "fp32"},
    "exact": {"exact": True},
}
MAGE_BATCH, RDM_BATCH, TINY_BATCH = 8, 128, 2
CACHED_IMAGES = 400
TINY_HEADS = ["--encoder-num-heads=4", "--generator-num-heads=4", "--generator-decoder-num-heads=2"]
TINY_TRAINING = {
    "mage-step": ["--width=64", "--depth=2", "--num-heads=4", "--decoder-depth=2", "--decoder-num-heads=2"],
    "rdm-step": ["--width=64", "--depth=2"],
}


@dataclass
class Cell:
    """What to measure.

    Attributes:
        part: `prepare`, or what `vs_reference.py --only` names.
        variant: a program and its mode.
        repeat: how often this was measured before; seeds the noise.
        clone: the reference.
        work: folder with the weights of both.
        result: file to write.
        tiny, images, steps, rdm_steps: flags of `vs_reference.py`.
    """

    part: str
    variant: str
    repeat: int
    clone: str
    work: str
    result: str
    tiny: bool
    images: int
    steps: int
    rdm_steps: int

    @property
    def folder(self) -> Path:
        """`work` as a path."""
        return Path(self.work)


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """A function's result, and the seconds that it took."""
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def summary(seconds: list[float], warm_up: int) -> dict[str, Any]:
    """The median of what came after the warm-up, and all of it."""
    return {"seconds": statistics.median(seconds[warm_up:]), "steps": seconds, "warm_up_steps": warm_up}


# ------------------------------------------------------------------ the reference


def open_reference(cell: Cell) -> Any:
    from reference_on_cpu import Reference

    return Reference(Path(cell.clone), cell.folder / "reference", cell.tiny)


def reference_cell(cell: Cell) -> dict[str, Any]:
    """Measure the reference program."""
    reference, imports = timed(lambda: open_reference(cell))
    import numpy as np
    import torch

    if cell.part == "prepare":
        reference.write_files()
        torch.save(reference.probe(), cell.folder / "probe.pt")
        return {}
    if cell.part == "mage-step":
        return summary(reference.train_mage(TINY_BATCH if cell.tiny else MAGE_BATCH, 3), 1)
    if cell.part == "rdm-step":
        in_loop = cell.variant == "reference-in-loop"
        steps, warm_up = (2, 1) if in_loop else (23, 3)
        return summary(reference.train_rdm(TINY_BATCH if cell.tiny else RDM_BATCH, steps, in_loop), warm_up)
    model, load = timed(lambda: reference.load_mage().eval())

    def generate(steps: int, rdm_steps: int) -> dict[str, float]:
        torch.manual_seed(cell.repeat)
        np.random.seed(cell.repeat)  # noqa: NPY002 (the reference draws from it)
        return reference.generate(model, cell.images, steps, rdm_steps, GUIDANCE[cell.part])

    if cell.part != "load":
        generate(2, 5)
    before = page_faults()
    result = generate(cell.steps, cell.rdm_steps)
    return {**result, "page_faults": page_faults() - before, "imports": imports, "load": load}


# ------------------------------------------------------------------ ours


def prepare_ours(cell: Cell) -> dict[str, Any]:
    """Convert the reference's files, save a pipeline, and compare every model with the reference's own outputs.

    Returns:
        The greatest difference of each, relative to the greatest value.
    """
    import torch

    from rcg import RCGPipeline
    from rcg.scripts import convert

    files = [str(cell.folder / "reference" / name) for name in ("mage.pth", "rdm.pth")]
    out, heads = cell.folder / "ours", TINY_HEADS if cell.tiny else []
    convert.main([*files, f"--out={out}", *heads])
    pipe = RCGPipeline.from_pretrained(out)
    fields = {"representations": ((256,), None), "tokens": ((16, 16), 1024)}
    write_cache(cell.folder / "cache", CACHED_IMAGES, fields, size=256)
    probe = torch.load(cell.folder / "probe.pt", weights_only=True)
    with torch.no_grad():
        pairs = {
            "MAGE logits": (pipe.image_generator(probe["ids"], probe["representations"]), probe["logits"]),
            "RDM": (pipe.rdm(probe["noisy"], probe["t"]).sample, probe["denoised"]),
            "encoder": (pipe.encode(probe["pictures"]), probe["encoded"]),
            "decoder": (pipe.tokenizer.decode(probe["codes"]), probe["decoded"].clamp(0, 1)),
        }
    return {name: float((a - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}


@contextlib.contextmanager
def clocks(pipe: Any) -> Iterator[dict[str, float]]:
    """Seconds that the RDM and the decoder take within calls of a pipeline."""
    spent: dict[str, float] = {}

    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            result, seconds = timed(lambda: function(*args, **options))
            spent[name] = spent.get(name, 0.0) + seconds
            return result

        return watched

    import rcg.rdm.ddpm.generator as ddpm

    tokenizer = type(pipe.tokenizer)
    with (
        mock.patch.object(ddpm, "sample_representations", watch("rdm", ddpm.sample_representations)),
        mock.patch.object(tokenizer, "decode", watch("decode", tokenizer.decode)),
    ):
        yield spent


def ours_sampling(cell: Cell) -> dict[str, Any]:
    """Measure a call of the pipeline."""

    def imported() -> Any:
        from rcg import RCGPipeline

        return RCGPipeline

    pipeline_class, imports = timed(imported)
    pipe, load = timed(lambda: pipeline_class.from_pretrained(cell.folder / "ours"))
    pipe.set_progress_bar_config(disable=True)
    import torch

    from rcg.rdm.schedule import paper_scheduler

    ddim = cell.variant in ("ddim", "exact")
    if cell.variant == "ddim":
        pipe.rdm_scheduler = paper_scheduler()

    def generate(steps: int, rdm_steps: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(cell.repeat)
        with clocks(pipe) as spent:
            _, seconds = timed(
                lambda: pipe(
                    batch_size=cell.images, num_inference_steps=steps, guidance_scale=1 + GUIDANCE[cell.part],
                    rdm_num_inference_steps=rdm_steps if ddim else None, temperature=6.0, generator=generator,
                    output_type="pt", **OURS[cell.variant],
                )
            )  # fmt: skip
        return {"seconds": seconds, **spent, "mage": seconds - sum(spent.values())}

    if cell.part != "load":
        generate(2, 5)
    before = page_faults()
    result = generate(cell.steps, cell.rdm_steps)
    return {**result, "page_faults": page_faults() - before, "imports": imports, "load": load}


def ours_training(cell: Cell) -> dict[str, Any]:
    """Measure steps of the training command, from the cache, as its log has them: optimiser and averages included."""
    from rcg.scripts import train_generator, train_rdm

    if cell.part == "mage-step":
        main, batch, steps, warm_up = train_generator.main, MAGE_BATCH, 7, 2
        flags = ["--config=generator-mage-b", "--condition=representation", "--num-codes=1024", "--held-out=2"]
    else:
        main, batch, steps, warm_up = train_rdm.main, RDM_BATCH, 33, 3
        flags = ["--config=rdm-b", "--held-out-share=0.05", "--eval-samples=2"]
    if cell.tiny:
        flags, batch = flags + TINY_TRAINING[cell.part], TINY_BATCH
    with tempfile.TemporaryDirectory(dir=cell.folder) as out:
        loop = {
            "data": cell.folder / "cache", "out": Path(out) / "run", "steps": steps, "batch-size": batch,
            "precision": cell.variant, "device": "cpu", "log-every": 1, "eval-every": steps, "preview-every": 10**9,
            "save-every": 10**9, "warmup": 0, "lr": 1e-5,
        }  # fmt: skip
        main([*flags, *(f"--{name}={value}" for name, value in loop.items())])
        log = (Path(out) / "run" / "training" / "log.jsonl").read_text()
    rates = [line["samples_per_second"] for line in map(json.loads, log.splitlines()) if "samples_per_second" in line]
    assert len(rates) == steps, "one line a step"
    return summary([batch / rate for rate in rates], warm_up)


def measure(cell: Cell) -> dict[str, Any]:
    """Measure what the cell says."""
    if cell.variant.startswith("reference"):
        result = reference_cell(cell)
    elif cell.part == "prepare":
        return prepare_ours(cell)
    else:
        result = ours_sampling(cell) if cell.part in GUIDANCE else ours_training(cell)
    return {**result, "peak_mib": peak_mib()}


if __name__ == "__main__":
    asked = Cell(**json.loads(sys.argv[1]))
    Path(asked.result).write_text(json.dumps(measure(asked)))
