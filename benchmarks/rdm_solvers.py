"""Which solver, with how many steps, samples an RDM best? Fréchet distance of representations, against DDIM-250.

    python benchmarks/rdm_solvers.py --rdm RUN/rdm --cache RUN/cache --out benchmarks/results/rdm_solvers.json

Every row draws the same number of representations, from the same noise, `--repeats` times with different seeds, and
compares them with one half of the cache's representations; the floor compares the other half with it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from rcg import __version__
from rcg.core.components import load_model, load_scheduler
from rcg.core.files import write_json
from rcg.core.rng import derive_seed
from rcg.data.cache import Cache
from rcg.eval.frechet import frechet_distance_from_stats, gaussian_stats
from rcg.rdm.representation_mlp import RepresentationMLP
from rcg.rdm.sampling import paper_scheduler, sample_representations
from rcg.rdm.schedule import BETA_END, BETA_START


def schedulers(prediction_type: str) -> dict[str, tuple[Any, float]]:
    """Name → (scheduler, eta)."""
    common: dict[str, Any] = {
        "beta_schedule": "scaled_linear",
        "beta_start": BETA_START,
        "beta_end": BETA_END,
        "prediction_type": prediction_type,
    }

    def dpm(**options: Any) -> tuple[Any, float]:
        return DPMSolverMultistepScheduler(**common, **options), 0.0

    sde = {"algorithm_type": "sde-dpmsolver++"}
    return {
        "ddim eta 1 (paper)": (paper_scheduler(prediction_type), 1.0),  # type: ignore[arg-type]
        "ddim eta 0": (paper_scheduler(prediction_type), 0.0),  # type: ignore[arg-type]
        "ddim eta 0 trailing": (
            DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing"),
            0.0,
        ),
        "dpm++ 2m": dpm(),
        "dpm++ 2m trailing": dpm(timestep_spacing="trailing"),
        "dpm++ 2m to sigma_min": dpm(final_sigmas_type="sigma_min"),
        "dpm++ 2m karras": dpm(use_karras_sigmas=True),
        "dpm++ 2m karras to sigma_min": dpm(use_karras_sigmas=True, final_sigmas_type="sigma_min"),
        "dpm++ 2m lu": dpm(use_lu_lambdas=True),
        "dpm++ 2m heun": dpm(solver_type="heun"),
        "dpm++ 3m": dpm(solver_order=3),
        "dpm++ 3m karras": dpm(solver_order=3, use_karras_sigmas=True),
        "sde-dpm++ 2m": dpm(**sde),
        "sde-dpm++ 2m to sigma_min": dpm(**sde, final_sigmas_type="sigma_min"),
        "sde-dpm++ 2m karras": dpm(**sde, use_karras_sigmas=True),
        "sde-dpm++ 2m karras to sigma_min": dpm(**sde, use_karras_sigmas=True, final_sigmas_type="sigma_min"),
        "sde-dpm++ 2m lu": dpm(**sde, use_lu_lambdas=True),
        "sde-dpm++ 1 (euler)": dpm(**sde, solver_order=1),
        "unipc": (UniPCMultistepScheduler(**common), 0.0),
        "unipc to sigma_min": (UniPCMultistepScheduler(**common, final_sigmas_type="sigma_min"), 0.0),
        "unipc karras": (UniPCMultistepScheduler(**common, use_karras_sigmas=True), 0.0),
        "unipc 3": (UniPCMultistepScheduler(**common, solver_order=3), 0.0),
        "deis": (DEISMultistepScheduler(**common), 0.0),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The table, as JSON values."""
    device = torch.device(args.device)
    rdm = load_model(RepresentationMLP, args.rdm).to(device)
    prediction_type = load_scheduler(args.rdm).config.prediction_type
    cache = Cache(args.cache, ["representations"])
    order = np.random.default_rng(0).permutation(len(cache))
    n = min(args.samples, len(cache) // 2)
    views = np.random.default_rng(1).integers(cache.views, size=2 * n)
    real = cache.read("representations", order[: 2 * n], views).astype(np.float32)
    labels = None
    if rdm.config.num_classes:
        assert cache.labels is not None
        labels = torch.from_numpy(cache.labels[order[n : 2 * n]])
    reference = gaussian_stats(real[:n])
    floor = frechet_distance_from_stats(*gaussian_stats(real[n:]), *reference)
    print(f"n {n}, floor {floor:.4f}", flush=True)
    rows: list[dict[str, Any]] = []
    for name, (scheduler, eta) in schedulers(prediction_type).items():
        if args.only and not any(name == o or name.startswith(o + " ") for o in args.only):
            continue
        for steps in [*args.steps, 250] if name.startswith("ddim eta 1") and 250 not in args.steps else args.steps:
            if name.startswith("ddim") and 1000 % steps:
                continue
            distances, seconds = [], 0.0
            for repeat in range(args.repeats):
                generator = torch.Generator().manual_seed(derive_seed(args.seed, repeat))
                start = time.perf_counter()
                parts = [
                    sample_representations(
                        rdm,
                        scheduler,
                        min(args.batch_size, n - i),
                        num_inference_steps=steps,
                        class_labels=None if labels is None else labels[i : i + args.batch_size],
                        eta=eta,
                        generator=generator,
                        row_block=None,
                    ).cpu()
                    for i in range(0, n, args.batch_size)
                ]
                seconds += time.perf_counter() - start
                distances.append(frechet_distance_from_stats(*gaussian_stats(torch.cat(parts).numpy()), *reference))
            row = {
                "solver": name,
                "steps": steps,
                "rep_fd": float(np.mean(distances)),
                "standard_error": float(np.std(distances, ddof=1) / math.sqrt(args.repeats))
                if args.repeats > 1
                else None,
                "samples_per_second": n * args.repeats / seconds,
                "config": json.loads(scheduler.to_json_string(), parse_constant=str),
                "eta": eta,
            }
            rows.append(row)
            error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.4f}"
            print(
                f"{name:34s} {steps:4d}  rep_fd {row['rep_fd']:.4f}{error}  {row['samples_per_second']:.0f}/s",
                flush=True,
            )
    return {
        "what": "Fréchet distance of sampled to real representations",
        "samples": n,
        "dim": int(real.shape[1]),
        "rep_fd_floor": floor,
        "rows": rows,
        "command": " ".join(sys.argv),
        "rdm_config": {k: v for k, v in rdm.config.items() if not k.startswith("_")},
        "versions": {"rcg": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
        "machine": f"{platform.machine()} {torch.get_num_threads()} threads {device.type}",
    }


def main() -> None:
    """Parse the flags, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rdm", type=Path, required=True, help="folder of a trained RDM")
    parser.add_argument("--cache", type=Path, required=True, help="cache with real representations of the same encoder")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 10, 15, 20, 25, 50])
    parser.add_argument("--only", nargs="+", help="names of solvers (or beginnings of names)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    result = measure(args)
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
