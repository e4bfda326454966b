"""What an evaluation costs beside its extractor: the whole of `rcg-eval`'s work against the extractor alone.

    python benchmarks/eval_speed.py --generated A --reference B --extractor inception-768 --weights inception_to_mixed_6e.pth \\
        --images 1000 --out benchmarks/results/eval_speed.json

In each round, on the same images, by turns: the extractor alone over tensors that lie in memory, block by block, and nothing
kept; and the evaluation of the two folders, from opening them (their lists are remembered) to the figures, with decoding,
statistics and metrics, without loading the extractor. For each precision the ratio of the seconds is given, the median of
the rounds, and that of processor time, which other work on the machine disturbs less; and how far bf16 moves the features.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rcg.scripts._command import set_up_process

set_up_process()  # memory and threads as in rcg-eval, for all arms; before torch is there

import torch  # noqa: E402
from features import open_named  # noqa: E402
from machine import cpu_name  # noqa: E402
from torch import Tensor  # noqa: E402

from rcg import __version__  # noqa: E402
from rcg.core.files import write_json  # noqa: E402
from rcg.data.sources import open_source  # noqa: E402
from rcg.eval.evaluate import Evaluator  # noqa: E402
from rcg.eval.features import CPU_BLOCK, FeatureExtractor, bf16_change  # noqa: E402
from rcg.eval.images import ImageSet  # noqa: E402

ARMS = ("extractor", "measuring", "whole")


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the clock and of the processor (all threads)."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - clock, "processor": time.process_time() - processor}


@torch.inference_mode()
def alone(extractor: FeatureExtractor, pixels: Tensor, precision: str) -> None:
    """The extractor over images in memory; what it makes is let go."""
    for block in pixels.split(CPU_BLOCK):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            extractor(block)


def compare(args: argparse.Namespace, extractor: FeatureExtractor, pixels: Tensor, precision: str) -> dict[str, Any]:
    """All rounds of one precision."""

    def evaluator() -> Evaluator:
        return Evaluator(extractor, limit=args.images, precision=precision, device="cpu")

    def measuring() -> None:
        """Both sides measured, without the change that bf16 makes (two more blocks) and without metrics."""
        from rcg.eval.measure import Wanted, measure

        for folder in (args.reference, args.generated):
            images = ImageSet(open_source(folder, min_size=1), "timed", limit=args.images)
            measure(extractor, images, Wanted(10_000), batch_size=CPU_BLOCK, precision=precision, progress=False)

    def whole() -> None:
        evaluator().evaluate(args.generated, reference=args.reference, metrics=args.metrics)

    work = {"extractor": lambda: alone(extractor, pixels, precision), "measuring": measuring, "whole": whole}
    alone(extractor, pixels[: 2 * CPU_BLOCK], precision)  # kernels are chosen and made
    rounds = []
    for number in range(args.rounds):
        order = ARMS if number % 2 == 0 else ARMS[::-1]
        rounds.append({arm: timed(work[arm]) for arm in order})
        told = ", ".join(f"{arm} {rounds[-1][arm]['seconds']:.2f} s" for arm in ARMS)
        print(f"{precision}, round {number + 1}: {told}", flush=True)

    def ratio(arm: str, of: str) -> float:
        return statistics.median(r[arm][of] / r["extractor"][of] for r in rounds)

    ratios = {arm: {of: ratio(arm, of) for of in ("seconds", "processor")} for arm in ARMS[1:]}
    for arm, found in ratios.items():
        print(f"{precision}: {arm} / extractor = {found['seconds']:.3f} (processor time {found['processor']:.3f})")
    return {"rounds": rounds, "ratios": ratios}


def main() -> None:
    """Parse the flags, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--extractor", default="inception-768")
    parser.add_argument("--weights", type=Path, help="of the extractor")
    parser.add_argument("--images", type=int, default=1000, help="of each side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--metrics", nargs="+", default=["fid", "kid", "prc", "dc"])
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    extractor = open_named(args.extractor, args.weights).eval()
    sets = [ImageSet(open_source(f, min_size=1), "timed", limit=args.images) for f in (args.generated, args.reference)]
    pixels = torch.cat([batch for images in sets for batch in images.batches(256)])
    found = {precision: compare(args, extractor, pixels, precision) for precision in args.precisions}
    change = bf16_change(extractor, pixels[:64])
    seconds = {p: statistics.median(r["extractor"]["seconds"] for r in f["rounds"]) for p, f in found.items()}
    print(f"bf16 moves the features by {100 * change:.2g} % of their length.")
    if len(seconds) == 2:
        print(f"The extractor alone takes {seconds['bf16'] / seconds['fp32']:.2f} times as long in bf16.")
    if args.out:
        settings = {"extractor": args.extractor, "images": [len(s) for s in sets], "metrics": args.metrics}
        machine = f"{cpu_name()}, {torch.get_num_threads()} threads, {platform.machine()}"
        told = {"settings": settings, "bf16_change": change, "note": args.note, "machine": machine}
        write_json(args.out, {"precisions": found, **told, "torch": torch.__version__, "rcg": __version__})


if __name__ == "__main__":
    main()
