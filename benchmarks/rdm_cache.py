"""RDM training from the cache against the encoder in the loop, and memory against the number of images.

    python benchmarks/rdm_cache.py --out benchmarks/results/rdm_cache.json

1. Time: the paper's RDM (1536 × 12) behind a ViT-B/16 at 224 px with random weights (speed does not depend on them).
   The same stage, through the same loop, trains first with the encoder in the loop, then from a cache of the same
   images; seconds per sample are those between log lines, without the first steps.
2. Memory: peak resident memory of a training process (`VmHWM`) for caches of growing size, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from fake_cache import write_cache
from machine import peak_mib

from rcg import __version__
from rcg.core.files import write_json
from rcg.data.cache import Cache, CacheField, build_cache
from rcg.data.images import ImageDataset
from rcg.data.sources import open_source
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.rdm.ddpm.objective import DDPMObjective
from rcg.rdm.representation_mlp import RepresentationMLP
from rcg.rdm.train import RDMStage
from rcg.training.config import TrainingConfig
from rcg.training.loop import train

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def make_encoder(tiny: bool) -> SSLEncoder:
    """The paper's encoder (ViT-B/16 with its projection head), or a toy for rehearsals."""
    torch.manual_seed(0)
    if tiny:
        return SSLEncoder("vit_tiny_patch16_224", TINY, 32, head_layers=3, head_hidden_dim=64, head_dim=16).eval()
    return SSLEncoder("vit_base_patch16_224", image_size=224, head_layers=3, head_hidden_dim=4096, head_dim=256).eval()


def seconds_per_sample(stage: RDMStage, out: Path, args: argparse.Namespace, steps: int) -> float:
    """Train `steps` steps (and 2 to warm up) through the loop; the median over steps of what a sample takes."""
    config = TrainingConfig(
        out=out, steps=steps + 2, batch_size=args.batch_size, micro_batch_size=args.micro_batch_size, lr=1e-6 * args.batch_size,
        lr_schedule="constant", weight_decay=0.01, log_every=1, eval_every=steps + 2, preview_every=10**9,
        save_every=10**9, precision=args.precision, device=args.device,
    )  # fmt: skip
    train(stage, config)
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    rates = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    assert len(rates) == steps + 2, "one line a step"
    return 1 / statistics.median(rates[2:])


def time_part(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds per sample with the encoder in the loop and from the cache, and their ratio."""
    encoder = make_encoder(args.tiny)
    size = int(encoder.config.image_size)
    width, depth = (64, 2) if args.tiny else (1536, 12)
    source = open_source(f"shapes:n={args.images},size={size}")

    def stage(dataset: Any, with_encoder: bool) -> RDMStage:
        torch.manual_seed(0)
        rdm = RepresentationMLP(encoder.representation_dim, width, depth)
        return RDMStage(DDPMObjective(rdm), dataset, encoder=encoder if with_encoder else None, eval_samples=2)

    in_loop = seconds_per_sample(
        stage(ImageDataset(source, size, "crop_flip"), True), folder / "loop", args, args.steps_in_loop
    )
    start = time.perf_counter()
    build_cache(
        source, folder / "cache", {"representations": CacheField(encoder, encoder)}, size, views=2,
        batch_size=args.micro_batch_size or 64, device=args.device, progress=False,
    )  # fmt: skip
    caching = (time.perf_counter() - start) / (2 * len(source))
    cached = seconds_per_sample(
        stage(Cache(folder / "cache", ["representations"]), False), folder / "cached", args, args.steps_cached
    )
    return {
        "seconds_per_sample_in_loop": in_loop,
        "seconds_per_sample_cached": cached,
        "seconds_per_view_of_caching": caching,
        "ratio": in_loop / cached,
        "hours_per_imagenet_epoch": {"in_loop": in_loop * 1281167 / 3600, "cached": cached * 1281167 / 3600},
        "ratio_over_200_epochs_with_10_cached_views": in_loop * 200 / (cached * 200 + caching * 10),
        "batch_size": args.batch_size,
        "rdm": {"width": width, "depth": depth, "dim": encoder.representation_dim},
        "encoder": encoder.config.arch,
    }


def memory_child(cache: Path, out: Path, steps: int) -> None:
    """Train a small RDM from a cache and print the peak."""
    dataset = Cache(cache, ["representations"])
    rdm = RepresentationMLP(dataset.fields["representations"][0], 64, 2)
    stage = RDMStage(DDPMObjective(rdm), dataset, eval_samples=100)
    train(stage, TrainingConfig(out=out, steps=steps, batch_size=512, lr=1e-4, device="cpu", precision="fp32"))
    print(f"PEAK {peak_mib()}")


def memory_part(args: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Peak memory for each size of cache."""
    rows = []
    for images in args.memory_images:
        cache = folder / f"cache-{images}"
        fields = {"representations": ((256,), None)}
        views = args.memory_views
        write_cache(cache, images, fields, views=views, per_shard=8192 // views, augment="crop_flip")
        command = [sys.executable, __file__, "--memory-child", str(cache), "--out", str(folder / f"run-{images}")]
        done = subprocess.run(
            [*command, "--memory-steps", str(args.memory_steps)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        size = sum(f.stat().st_size for f in cache.rglob("*.npy")) / 2**20
        peak = float(next(line for line in done.stdout.splitlines() if line.startswith("PEAK")).split()[1])
        rows.append({"images": images, "views": args.memory_views, "cache_mb": size, "peak_rss_mb": peak})
        print(f"{images:9d} images, cache {size:7.0f} MB, peak {peak:.0f} MB", flush=True)
    return rows


def main() -> None:
    """Parse the flags, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--work", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--micro-batch-size", type=int, default=None)
    parser.add_argument("--steps-in-loop", type=int, default=3)
    parser.add_argument("--steps-cached", type=int, default=10)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="rehearse with toy models")
    parser.add_argument("--memory-images", type=int, nargs="*", default=[5_000, 50_000, 500_000])
    parser.add_argument("--memory-views", type=int, default=2)
    parser.add_argument("--memory-steps", type=int, default=200)
    parser.add_argument("--memory-child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_child:
        memory_child(args.memory_child, args.out, args.memory_steps)
        return
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        result = {
            "what": "RDM training: encoder in the loop against the cache; peak memory against the number of images",
            "time": time_part(args, Path(folder)),
            "memory": memory_part(args, Path(folder)),
            "command": " ".join(sys.argv),
            "versions": {"rcg": __version__, "torch": torch.__version__},
            "machine": f"{platform.machine()} {torch.get_num_threads()} threads {args.device} {args.precision}",
        }
    print(json.dumps(result["time"], indent=2))
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
