"""How quickly tokens are drawn from logits, against softmax, running sums and a search over whole tensors (one thread).

    python benchmarks/draw_categories.py [--out FILE]

Both ways draw in float64. Prints the seconds of each in alternation (medians), their ratio, and in how many draws they differ,
which only a uniform number within a rounding of a boundary can make them do.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import cpu_name
from torch import Tensor

from rcg.core.categorical import draw_categories
from rcg.core.files import write_json

SIZES = {"16 images of 256 tokens, 1,024 words": (4096, 1024), "10 images of 256 tokens, 4,095 codes": (2560, 4095)}
"""Distributions, and categories of each."""


def plain(logits: Tensor, uniform: Tensor) -> Tensor:
    """The inverse of the distribution function, in the fewest lines."""
    ends = logits.double().softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(ends, uniform[..., None] * ends[..., -1:], right=True)[..., 0]
    return drawn.clamp_max(logits.shape[-1] - 1)


def seconds(work: Callable[[], Any]) -> float:
    """Of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(rows: int, categories: int, repeats: int) -> dict[str, float]:
    """The figures of a size."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(rows, categories, generator=generator)
    uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
    differing = int((plain(logits, uniform) != draw_categories(logits, uniform)[0]).sum())
    times = [
        (seconds(lambda: plain(logits, uniform)), seconds(lambda: draw_categories(logits, uniform)))
        for _ in range(repeats)
    ]
    before, here = (statistics.median(t) for t in zip(*times, strict=True))
    return {"plain_s": before, "here_s": here, "ratio": before / here, "differing_draws": differing}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {name: compare(*size, args.repeats) for name, size in SIZES.items()}
    for name, row in report.items():
        print(
            f"{name}: plain {row['plain_s']:.3f} s, here {row['here_s']:.3f} s, {row['ratio']:.1f} times quicker",
            end="; ",
        )
        print(f"{row['differing_draws']} draws differ")
    if args.out is not None:
        write_json(args.out, {"cpu": cpu_name(), "torch": torch.__version__, "os": platform.system(), "sizes": report})


if __name__ == "__main__":
    main()
