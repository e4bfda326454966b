"""How many images a second RCG-B draws on this machine, and where the time goes: fp32, bf16, bf16 replayed as CUDA graphs.

    python benchmarks/sampling_speed.py --out benchmarks/results/sampling_speed.json

The pipeline has RCG-B's sizes, random weights and the default settings (RDM of width 1536 and 12 blocks, MAGE-B with 20
steps, the VQ tokenizer for 256 x 256). A row is a batch size and a way. `rdm`, `mage` and `decode` are measured apart, each
from its start until the device has done it; `whole` is a call of the pipeline that gives tensors. All are medians of
--repeats runs after three, in which graphs are recorded. Without a GPU nothing is replayed, and that way is left out.
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

from rcg import MageTransformer, MaskGITScheduler, RCGPipeline, RepresentationMLP, VQTokenizer, __version__
from rcg.core.files import write_json
from rcg.core.hardware import bf16_pays, pick_device
from rcg.core.precision import Precision
from rcg.core.replay import replaying
from rcg.core.rng import Noise
from rcg.image_gen.protocol import Request
from rcg.rdm import protocol as rdm_protocol
from rcg.rdm.schedule import fast_scheduler

WAYS: dict[str, tuple[Precision, bool]] = {
    "fp32": ("fp32", False),
    "bf16": ("bf16", False),
    "bf16, graphs": ("bf16", True),
}
"""Precision, and whether what can be replayed is."""
WARM_UP = 3


def pipeline(tiny: bool, device: torch.device) -> RCGPipeline:
    """RCG-B with random weights, or a toy."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 64, "depth": 2, "num_heads": 4, "decoder_depth": 2} if tiny else {}
    mage = MageTransformer(**sizes, decoder_num_heads=4 if tiny else 16, representation_dim=256)
    narrow = {"base_channels": 32, "channel_multipliers": (1, 1, 1, 1, 1), "num_res_blocks": 1}
    tokenizer = VQTokenizer(**narrow) if tiny else VQTokenizer()
    rdm = RepresentationMLP(256, *((64, 2) if tiny else (1536, 12)))
    scheduler = MaskGITScheduler(mask_token_id=mage.config.mask_token_id)
    pipe = RCGPipeline(mage, scheduler, tokenizer, rdm, fast_scheduler()).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """What a run takes, in the middle."""

    def run() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for _ in range(WARM_UP):
        run()
    return statistics.median(run() for _ in range(repeats))


@torch.no_grad()
def measure(pipe: RCGPipeline, batch: int, precision: Precision, device: torch.device, repeats: int) -> dict[str, Any]:
    """Seconds of each part and of the whole, and images a second."""
    noise = Noise(range(batch), device)
    settings, generator, rdm = pipe.settings(), pipe.generator, pipe.representation_generator
    assert rdm is not None
    assert settings["num_inference_steps"] is not None
    drawing = rdm_protocol.Request(noise, num_inference_steps=settings["rdm_num_inference_steps"], precision=precision)
    request = Request(
        noise=noise,
        representations=rdm.draw(drawing),
        class_labels=None,
        num_inference_steps=settings["num_inference_steps"],
        temperature=settings["temperature"],
        precision=precision,
    )
    codes, random = generator.generate(request), torch.Generator().manual_seed(0)
    works: dict[str, Callable[[], object]] = {
        "rdm": lambda: rdm.draw(drawing),
        "mage": lambda: generator.generate(request),
        "decode": lambda: generator.decode(codes, precision),
        "whole": lambda: pipe(batch, generator=random, output_type="pt", precision=precision),
    }
    found = {name: seconds(work, device, repeats) for name, work in works.items()}
    return {"seconds": found, "images_per_second": batch / found["whole"]}


def main() -> None:
    """Measure each batch size in each way; print, write after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="rehearse with a toy")
    args = parser.parse_args()
    device = pick_device(args.device)
    cuda = device.type == "cuda"
    flags = f"--device {device.type} --batches {' '.join(map(str, args.batches))} --repeats {args.repeats}"
    result: dict[str, Any] = {
        "what": "images a second of RCG-B with random weights and default settings, and the seconds of its parts",
        "command": f"python benchmarks/sampling_speed.py {flags}" + " --tiny" * args.tiny,
        "versions": {"rcg": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {
            "device": torch.cuda.get_device_name() if cuda else cpu_name(),
            "threads": torch.get_num_threads(),
            "fp32_products": torch.get_float32_matmul_precision(),
        },
    }
    pipe, rows = pipeline(args.tiny, device), []
    for batch in args.batches:
        for way, (precision, replays) in WAYS.items():
            if (replays and not cuda) or (precision == "bf16" and not bf16_pays(device)):
                continue
            with replaying(replays):
                row = {"batch": batch, "way": way} | measure(pipe, batch, precision, device, args.repeats)
            rows.append(row)
            parts = ", ".join(f"{name} {1e3 * s:.4g} ms" for name, s in row["seconds"].items())
            print(f"{batch} images, {way}: {row['images_per_second']:.4g} images/s ({parts})", flush=True)
            if args.out:
                write_json(args.out, result | {"rows": rows})


if __name__ == "__main__":
    main()
