"""How near each part comes to what this machine can do: operations, bytes of weights, seconds, share of the peak.

    python benchmarks/roofline.py --out benchmarks/results/roofline.json
    python benchmarks/roofline.py --device cuda --out benchmarks/results/roofline_cuda.json

First the machine is measured: the fastest matrix product, of several sizes and by three ways (`torch.mm`, `F.linear`,
a 1 x 1 convolution), in fp32 and, where the hardware has it, bf16; and the bandwidth of memory, by a copy (bytes read
and written). Then every part of RCG-B, with random weights.

- *Operations* are those of matrix products, convolutions and attention, 2 for a multiply-add, as PyTorch's
  `FlopCounterMode` counts them on the fp32 model (bf16 layers with packed weights are operators it does not know). A
  generation in the default mode does less than an exact one: its own operations are counted.
- *Bytes* are those of the weights that these operations read, each time they read them from memory (not within 64 MiB
  of other weights), at 2 bytes a number for a frozen model in bf16; for a training step also AdamW's 28 bytes a weight
  (4 numbers read, 3 written) and the moving average's 12. Activations are left out: the bound is a lower one.
- *Bound* is the least time: the greater of operations / peak and bytes / bandwidth.
- A training step is forward, backward, AdamW (fused), and for the RDM the moving average.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import cpu_name
from roofline_parts import Part, Work, parts
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from rcg import __version__
from rcg.core.files import write_json
from rcg.core.hardware import bf16_pays, pick_device
from rcg.core.precision import Precision

ENOUGH = 0.2
"""Seconds below which a work is timed many times over."""
NEAR = 2**26
"""A weight that is read again before so many bytes of others is taken to come from a cache."""


def attention_operations(query: torch.Size, key: torch.Size, *_: Any, **__: Any) -> int:
    """Of the CPU's fused attention, which `FlopCounterMode` does not know: two products for each head."""
    batch, heads, length, width = query
    return 4 * batch * heads * length * key[-2] * width


class Machine:
    """A device with its clock and its measured limits."""

    def __init__(self, device: torch.device, tiny: bool) -> None:
        self.device, self.tiny = device, tiny
        self.precisions: tuple[Precision, ...] = ("fp32", "bf16") if bf16_pays(device) else ("fp32",)

    def synchronize(self) -> None:
        """Wait until everything has been computed."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Work, repeats: int) -> list[float]:
        """What one run takes, `repeats` times; short works are run in a row until they take long enough."""

        def run(times: int) -> float:
            self.synchronize()
            start = time.perf_counter()
            for _ in range(times):
                work()
            self.synchronize()
            return (time.perf_counter() - start) / times

        run(1)
        once = run(1)
        if once >= ENOUGH:
            return [once] + [run(1) for _ in range(repeats - 1)]
        return [run(round(ENOUGH / once) + 1) for _ in range(repeats)]

    @torch.no_grad()
    def matmul_peak(self, precision: Precision, repeats: int) -> dict[str, Any]:
        """The best rate of a matrix product, in operations a second, and every rate that was found."""
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        sizes = (256, 512) if self.tiny else (4096, 8192, 16384) if self.device.type == "cuda" else (1024, 2048, 4096)
        rates: dict[str, float] = {}
        for n in sizes:
            a, b = (torch.randn(n, n, device=self.device, dtype=dtype) for _ in range(2))
            image, kernel = a.view(1, n, n // 64, 64), b.view(n, n, 1, 1)
            ways: dict[str, Work] = {
                "torch.mm": lambda a=a, b=b: torch.mm(a, b),
                "F.linear": lambda a=a, b=b: F.linear(a, b),
                "1x1 F.conv2d": lambda image=image, kernel=kernel: F.conv2d(image, kernel),
            }
            for way, work in ways.items():
                rates[f"{way}, {n}"] = 2 * n**3 / min(self.seconds(work, repeats))
        return {"best": max(rates.values()), "rates": rates}

    def bandwidth(self, repeats: int) -> float:
        """Bytes a second that a copy reads and writes."""
        size = 2**26 if self.tiny else 2**30
        source = torch.ones(size // 4, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / min(self.seconds(lambda: target.copy_(source), repeats))


class WeightTraffic(TorchDispatchMode):
    """Counts the bytes of weights that matrix products, convolutions and attention read from memory."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.weights = {p.untyped_storage().data_ptr() for model in models for p in model.parameters()}
        self.bytes = self.read = 0  # from memory, and from wherever
        self.last: dict[int, int] = {}  # weight → what had been read when it was last

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in flop_registry:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and (place := value.untyped_storage().data_ptr()) in self.weights:
                    size = value.numel() * value.element_size()
                    if self.read - self.last.get(place, -NEAR) >= NEAR:
                        self.bytes += size
                    self.read += size
                    self.last[place] = self.read
        return func(*args, **(kwargs or {}))


def count(part: Part) -> tuple[int, int]:
    """Operations of a part in fp32, and bytes of weights that it reads."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={fused: attention_operations})
    weights = [p for model in part.models for p in model.parameters() if p.requires_grad and not part.trains]
    for weight in weights:  # the counter's hooks stumble over slices of trainable ones without a graph
        weight.requires_grad_(False)
    with WeightTraffic(part.models) as traffic, counter:
        part.make("fp32")()
    for weight in weights:
        weight.requires_grad_(True)
    return counter.get_total_flops(), traffic.bytes


def measure(part: Part, machine: Machine, limits: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """The rows of a part, one a precision."""
    operations, touched = count(part)
    weights = sum(p.numel() for model in part.models for p in model.parameters() if p.requires_grad)
    rows = []
    for precision in part.precisions:
        if precision not in machine.precisions:
            continue
        seconds = machine.seconds(part.make(precision), repeats)
        middle = statistics.median(seconds)
        bytes_read = touched // (2 if precision == "bf16" and not part.trains else 1) + part.state_bytes * weights
        peak = limits["matmul"][precision]["best"]
        bound = max(operations / peak, bytes_read / limits["bandwidth"])
        row = {
            "part": part.name, "precision": precision, "operations": operations, "bytes": bytes_read, "seconds": middle,
            "all_seconds": seconds, "operations_per_second": operations / middle,
            "share_of_peak": operations / middle / peak, "bound_seconds": bound, "share_of_bound": bound / middle,
            "bound_by": "memory" if bytes_read / limits["bandwidth"] > operations / peak else "arithmetic",
        }  # fmt: skip
        rows.append(row)
        print(f"{part.name}, {precision}: {middle:.4g} s, {row['share_of_peak']:.0%} of peak", flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| | | GFLOP | weights, MB | seconds | GFLOP/s | share of peak | bound, s | bound by | share of bound |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for row in rows:
        figures = [
            row["part"], row["precision"], f"{row['operations'] / 1e9:.4g}", f"{row['bytes'] / 1e6:.4g}",
            f"{row['seconds']:.3g}", f"{row['operations_per_second'] / 1e9:.3g}", f"{row['share_of_peak']:.0%}",
            f"{row['bound_seconds']:.3g}", row["bound_by"], f"{row['share_of_bound']:.0%}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the machine and every part; print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="JSON file to write; parts that it holds already are not measured again"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--images", type=int, help="to encode, generate and decode (default: 4, on CUDA 64)")
    parser.add_argument("--train-images", type=int, help="of a step of MAGE (default: 8, on CUDA 64)")
    parser.add_argument("--steps", type=int, default=20, help="of a generation")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="rehearse with toy models")
    args = parser.parse_args()
    machine = Machine(pick_device(args.device), args.tiny)
    cuda = machine.device.type == "cuda"
    images, train_images = args.images or (64 if cuda else 4), args.train_images or (64 if cuda else 8)
    flags = f"--device {machine.device.type} --images {images} --train-images {train_images} --steps {args.steps}"
    result: dict[str, Any] = {
        "what": "operations, weights and seconds of RCG-B's parts against this machine's limits",
        "command": f"python benchmarks/roofline.py {flags} --repeats {args.repeats}" + " --tiny" * args.tiny,
        "versions": {"rcg": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {
            "device": torch.cuda.get_device_name() if cuda else cpu_name(),
            "threads": torch.get_num_threads(),
            "fp32_products": torch.get_float32_matmul_precision(),
        },
    }
    before = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    goes_on = all(before.get(key) == value for key, value in result.items())
    if goes_on:
        limits, rows = before["limits"], before["rows"]
    else:
        limits = {"matmul": {p: machine.matmul_peak(p, args.repeats) for p in machine.precisions}}
        limits, rows = limits | {"bandwidth": machine.bandwidth(args.repeats)}, []
    peaks = ", ".join(f"{p} {found['best'] / 1e9:.4g} GFLOP/s" for p, found in limits["matmul"].items())
    print(f"matrix products: {peaks}; memory: {limits['bandwidth'] / 1e9:.3g} GB/s", flush=True)
    for part in parts(machine.device, images, train_images, args.steps, args.tiny):
        if part.name not in {row["part"] for row in rows}:
            rows += measure(part, machine, limits, args.repeats)
            if args.out:
                write_json(args.out, result | {"limits": limits, "rows": rows})
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
