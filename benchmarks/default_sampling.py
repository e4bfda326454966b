"""What quick sampling costs in quality: the default against `exact`, the same seeds, on a model trained for it.

    python benchmarks/default_sampling.py --model RUN/model --reference IMAGES --extractor-weights inception.pth \\
        --num-images 2000 --seeds 0 1 2 --out benchmarks/results/default_sampling.json

For each case and seed: FID-768 (features of Inception's mixed_6e) of the images against the reference images, and the
Fréchet distance of the representations to those of the reference images. Results are added to --out as they come; what
is there already is not computed again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcg import RCGPipeline
from rcg.core.files import write_json
from rcg.core.pictures import to_uint8
from rcg.core.rng import sample_generators
from rcg.data.sources import open_source
from rcg.eval.extractors import open_extractor
from rcg.eval.features import extract
from rcg.eval.frechet import frechet_distance_from_stats, gaussian_stats
from rcg.eval.images import ImageSet

CASES: dict[str, dict[str, Any]] = {
    "exact": {"exact": True},
    "default": {},
    "default, fp32": {"precision": "fp32"},
    "exact, guided": {"exact": True, "guidance_scale": 2.0},
    "default, guided": {"guidance_scale": 2.0},
}
CPU = torch.device("cpu")


def draw(pipe: RCGPipeline, count: int, seed: int, options: dict[str, Any]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """uint8 batches of images, and representations [count, D]."""
    images, representations = [], []
    for start in range(0, count, 500):
        some = min(500, count - start)
        out = pipe(some, generator=sample_generators(seed, start, some), output_type="pt", **options)
        images.append(to_uint8(out.images))
        representations.append(out.representations)
    return images, torch.cat(representations)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a pipeline that has its encoder")
    parser.add_argument("--reference", required=True, help="real images that it was not trained on")
    parser.add_argument("--extractor-weights", type=Path, required=True)
    parser.add_argument("--num-images", type=int, default=2000)
    parser.add_argument("--num-reference", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    pipe = RCGPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    extractor = open_extractor("inception-768", args.extractor_weights)

    def features(batches: Any) -> np.ndarray:
        return np.asarray(extract(extractor, batches, device=CPU, precision="bf16").features)

    real = ImageSet(open_source(args.reference, min_size=1), "reference", limit=args.num_reference)
    cache = args.out.with_suffix(".npz")  # not to be committed
    if not cache.exists():
        with torch.no_grad():
            encoded = torch.cat([pipe.encode(batch.float() / 255) for batch in real.batches(250)])
        np.savez(cache, features=features(real.batches(64)), representations=encoded.numpy())
    kept = np.load(cache)
    stats = {name: gaussian_stats(kept[name]) for name in ("features", "representations")}

    def distance(name: str, found: np.ndarray) -> float:
        return float(frechet_distance_from_stats(*gaussian_stats(found), *stats[name]))

    report = json.loads(args.out.read_text()) if args.out.exists() else {"results": []}
    report |= {"num_images": args.num_images, "num_reference": len(real), "machine": platform.machine()}
    report["torch"], report["threads"] = torch.__version__, torch.get_num_threads()
    for seed in args.seeds:
        for case in args.cases:
            if any((r["case"], r["seed"]) == (case, seed) for r in report["results"]):
                continue
            start = time.perf_counter()
            images, representations = draw(pipe, args.num_images, seed, CASES[case])
            seconds = time.perf_counter() - start
            result = {
                "case": case,
                "seed": seed,
                "fid_768": distance("features", features(images)),
                "representation_fd": distance("representations", representations.numpy()),
                "seconds": round(seconds, 1),
            }
            print(result, flush=True)
            report["results"].append(result)
            write_json(args.out, report)


if __name__ == "__main__":
    main()
