"""The methods of `rcg-train-rdm` side by side: equal time, about equal parameters, few evaluations.

    python benchmarks/rdm_methods.py --cache RUN/cache --minutes 20 --out benchmarks/results/rdm_methods.json

Each method trains through the library's own loop on the same part of the cache for `--minutes`: a short run takes its speed,
and the whole one then gets the number of steps that fits. The codes' width is chosen such that the parameters of its
transformer come closest to those of the MLPs. Then each draws `--samples` representations with every number of evaluations of `--steps`
(the codes have no more steps than positions), `--repeats` times from other noise, which are judged against representations
that nobody trained on: Fréchet distance, precision and recall (k-NN balls, k = 3). `real` is the floor: other held-out
representations; `coded` those after the codes and back. `ddpm, the paper's` is DDIM at eta 1. Where the encoder brings each
representation to mean 0 and standard deviation 1, flow and codes do so with their samples at last, and the published method
does not: `raw` and `standardised` show each method the other way.

`--model` draws images from each method's representations, all from the same noise, with the generator of that pipeline (whose
encoder must have made the cache), and gives their `fid-768` to the images behind `--image-stats` (an `.npz` of `rcg-eval
--make-stats` with `--extractor inception-768`), at most `--num-images` a row.

`--synthetic` makes a cache-like set of its own: a mixture of Gaussians, standardised as an encoder's output is.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from rcg import RCGPipeline, __version__
from rcg.core.errors import UserError
from rcg.core.files import write_json
from rcg.core.pictures import to_uint8
from rcg.core.rng import Noise, derive_seed, sample_generators
from rcg.eval.evaluate import Evaluator
from rcg.eval.frechet import frechet_distance_from_stats, gaussian_stats
from rcg.eval.neighbors import precision_recall
from rcg.rdm.methods import METHODS
from rcg.rdm.protocol import Objective, RepresentationGenerator, Request, Task
from rcg.rdm.recipes import RECIPES
from rcg.rdm.schedule import paper_scheduler
from rcg.rdm.statistics import standardized
from rcg.rdm.train import RDMData, RDMStage, hold_out_share, open_data
from rcg.training.config import TrainingConfig
from rcg.training.loop import train
from rcg.training.stage import Batch

DRAWN_AT_ONCE = 1000
IMAGES_AT_ONCE = 250


class Mixture:
    """A labelled data set: clusters on the sphere of standardised vectors, each with directions of its own."""

    def __init__(self, count: int, dim: int, classes: int = 10, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        shape = np.random.default_rng(7)
        centres = 1.2 * shape.normal(size=(classes, dim))
        spreads = shape.normal(size=(classes, dim, dim)) / dim**0.5 * np.exp(shape.normal(size=(classes, 1, dim)) * 0.7)
        self.labels = rng.integers(classes, size=count)
        noise = rng.normal(size=(count, dim))
        vectors = centres[self.labels] + np.einsum("nd,nde->ne", noise, spreads[self.labels])
        vectors -= vectors.mean(axis=1, keepdims=True)
        self.vectors = (vectors / vectors.std(axis=1, ddof=1, keepdims=True)).astype(np.float32)
        self.fingerprint = f"mixture-{count}-{dim}-{classes}-{seed}"

    def __len__(self) -> int:
        return len(self.vectors)

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> Batch:
        return {
            "representations": torch.from_numpy(self.vectors[indices]),
            "labels": torch.from_numpy(self.labels[indices]),
        }


def open_set(args: argparse.Namespace) -> RDMData:
    """The data of all runs, split once."""
    if args.synthetic:
        data = Mixture(args.synthetic, args.dim)
        dataset, heldout = hold_out_share(data, args.held_out_share)
        return RDMData(dataset, heldout, None, args.dim, 10 if args.class_conditional else 0, True)
    return open_data(
        args.cache, held_out_share=args.held_out_share, condition="class" if args.class_conditional else "none"
    )


def parameters_of(objective: Objective) -> int:
    return sum(p.numel() for p in objective.rdm.parameters())


def objective_of(name: str, args: argparse.Namespace, data: RDMData) -> Objective:
    """A new model; that of codes in the width whose parameters come closest to the MLPs'."""
    dropout = 0.1 if data.num_classes else 0.0
    task = Task(data.representation_dim, data.num_classes, dropout, data.standardized)
    recipe = RECIPES[name]  # type: ignore[index]

    def make(**sizes: Any) -> Objective:
        torch.manual_seed(args.seed)
        made: Objective = recipe(**sizes).objective(task)
        return made

    if name != "codes":
        own = {} if args.time_shift is None or name != "flow" else {"time_shift": args.time_shift}
        return make(width=args.width, depth=args.depth, **own)
    sizes = {"positions": args.positions, "num_codes": args.num_codes, "depth": args.code_depth, "num_heads": 4}
    with torch.device("meta"):  # only to be counted
        wanted = parameters_of(objective_of("ddpm", args, data))
        distance = {w: abs(parameters_of(make(width=w, **sizes)) - wanted) for w in range(32, 1025, 32)}
    return make(width=min(distance, key=lambda w: distance[w]), **sizes)


def train_for(objective: Objective, args: argparse.Namespace, data: RDMData, folder: Path) -> dict[str, Any]:
    """Train for about `--minutes`; figures of the last evaluation, steps and seconds."""

    def run(stage_objective: Objective, steps: int, out: Path) -> tuple[dict[str, float], float]:
        stage = RDMStage(stage_objective, data.dataset, heldout=data.heldout, eval_samples=min(1000, args.samples))
        config = TrainingConfig(
            out=out, steps=steps, batch_size=args.batch_size, lr=args.lr, lr_schedule="cosine", warmup=0.02, weight_decay=0.01,
            beta2=0.999, ema_decay=args.ema_decay, eval_every=steps, preview_every=10**9, save_every=10**9,
            log_every=max(1, steps // 10),
            precision=args.precision, device=args.device, seed=args.seed,
        )  # fmt: skip
        start = time.perf_counter()
        figures = train(stage, config)
        return figures, time.perf_counter() - start

    state = {k: v.clone() for k, v in objective.rdm.state_dict().items()}  # type: ignore[attr-defined]
    run(objective, args.probe_steps, folder / "probe")
    lines = [json.loads(line) for line in (folder / "probe" / "training" / "log.jsonl").read_text().splitlines()]
    rates = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    objective.rdm.load_state_dict(state)
    steps = max(10, round(60 * args.minutes * statistics.median(rates[1:] or rates) / args.batch_size))
    figures, seconds = run(objective, steps, folder / "whole")
    trained = type(objective.rdm).from_pretrained(folder / "whole").eval().to(args.device)
    objective.rdm = trained
    return {"steps": steps, "seconds": seconds, "figures": figures}


def draw(
    generator: RepresentationGenerator, count: int, steps: int, seed: int, labels: torch.Tensor | None, device: str,
    exact: bool = False,
) -> np.ndarray:  # fmt: skip
    """Representations [count, D]."""
    parts = []
    for start in range(0, count, DRAWN_AT_ONCE):
        seeds = [derive_seed(seed, i) for i in range(start, min(start + DRAWN_AT_ONCE, count))]
        some = None if labels is None else labels[start : start + DRAWN_AT_ONCE]
        request = Request(Noise(seeds, device), some, steps, exact=exact, blocks=False)
        parts.append(generator.draw(request).cpu())
    return torch.cat(parts).numpy()


def ways(name: str, objective: Objective) -> Iterator[tuple[str, RepresentationGenerator, bool]]:
    """(name of the row, what draws, whether exactly) of a trained method."""
    generator = objective.generator
    yield name, generator, False
    if name == "ddpm":
        paper = METHODS["ddpm"].generator(generator.model, paper_scheduler())
        yield "ddpm, the paper's", paper, True


class Pictures:
    """What images made from representations are worth."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.pipe = RCGPipeline.from_pretrained(args.model).to(args.device)
        self.pipe.set_progress_bar_config(disable=True)
        weights = args.extractor_weights
        self.evaluator = Evaluator(
            "inception-768", extractor_weights=weights, precision=args.precision, device=args.device
        )
        self.reference, self.count, self.seed = args.image_stats, args.num_images, args.seed

    def fid(self, representations: np.ndarray) -> float:
        """FID-768 of images from representations [N, D]."""
        report = self.evaluator.evaluate(
            self._batches(representations[: self.count]), reference=self.reference, metrics=["fid"]
        )
        return float(report["metrics"]["fid-768"])

    def _batches(self, representations: np.ndarray) -> Iterator[torch.Tensor]:
        for start in range(0, len(representations), IMAGES_AT_ONCE):
            some = torch.from_numpy(representations[start : start + IMAGES_AT_ONCE].astype(np.float32))
            generators = sample_generators(self.seed, start, len(some))
            yield to_uint8(self.pipe(representations=some, generator=generators, output_type="pt").images)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The table, as JSON values."""
    pictures = Pictures(args) if args.model else None
    data = open_set(args)
    assert data.heldout is not None
    n = min(args.samples, len(data.heldout) // 2)
    order = np.random.default_rng(0).permutation(len(data.heldout))[: 2 * n]
    batch = data.heldout.batch(order, order.astype(np.uint64))
    real = batch["representations"].float()
    labels = batch["labels"][n:].to(args.device) if data.num_classes else None
    reference = gaussian_stats(real[:n].numpy())
    rows: list[dict[str, Any]] = []

    def judge(name: str, steps: int, drawn: list[np.ndarray], pictured: bool = True) -> None:
        distances = [frechet_distance_from_stats(*gaussian_stats(x), *reference) for x in drawn]
        found, _ = precision_recall(drawn[0].astype(np.float32), real[:n].numpy())
        error = float(np.std(distances, ddof=1) / len(distances) ** 0.5) if len(distances) > 1 else None
        rows.append(
            {"row": name, "evaluations": steps, "rep_fd": float(np.mean(distances)), "standard_error": error} | found
        )
        if pictures is not None and pictured:
            rows[-1]["fid-768"] = pictures.fid(drawn[0])
        print(
            f"{name:24s} {steps or '':>4}  rep_fd {rows[-1]['rep_fd']:.4f}  precision {found['precision']:.3f}  "
            f"recall {found['recall']:.3f}  fid-768 {rows[-1].get('fid-768', float('nan')):.3f}",
            flush=True,
        )

    judge("real", 0, [real[n:].numpy()])
    methods: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        for name in args.methods:
            objective = objective_of(name, args, data)
            config = {k: v for k, v in objective.rdm.config.items() if not k.startswith("_")}
            methods[name] = {"parameters": parameters_of(objective), "config": config}
            methods[name] |= train_for(objective, args, data, Path(folder) / name)
            print(f"{name}: {methods[name]}", flush=True)
            if (coded := objective.reconstruct(real[n:].to(args.device))) is not None:
                judge("coded", 0, [coded.cpu().numpy()])
            by_itself = bool(config.get("standardized", False))  # whether the method ends by standardising
            if by_itself:
                objective.rdm.register_to_config(standardized=False)  # both are judged here, from one draw
            for row, generator, exact in ways(name, objective):
                for steps in args.steps:
                    seeds = [derive_seed(args.seed, 9, repeat) for repeat in range(args.repeats)]
                    try:
                        drawn = [draw(generator, n, steps, seed, labels, args.device, exact) for seed in seeds]
                    except UserError as e:
                        print(f"{row:24s} {steps:>4}  {e}", flush=True)
                        continue
                    if not data.standardized:
                        judge(row, steps, drawn)
                        continue
                    brought = [standardized(torch.from_numpy(x)).numpy() for x in drawn]
                    judge(row if by_itself else f"{row}, standardised", steps, brought, by_itself)
                    judge(f"{row}, raw" if by_itself else row, steps, drawn, not by_itself)
    return {
        "what": "representations by each method of rcg-train-rdm, at equal time and about equal parameters",
        "samples": n,
        "dim": data.representation_dim,
        "standardized": data.standardized,
        "data": data.dataset.fingerprint,
        "minutes": args.minutes,
        "methods": methods,
        "rows": rows,
        "num_images": args.num_images if args.model else None,
        "command": " ".join(["rdm_methods.py", *(Path(word).name if "/" in word else word for word in sys.argv[1:])]),
        "versions": {"rcg": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
        "machine": f"{platform.machine()} {torch.get_num_threads()} threads {args.device}",
    }


def main() -> None:
    """Parse the flags, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--cache", type=Path, help="cache with representations")
    what.add_argument("--synthetic", type=int, metavar="N", help="rehearse on N vectors of a mixture instead")
    parser.add_argument("--dim", type=int, default=64, help="entries of the synthetic vectors")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--model", help="pipeline whose generator draws images from the representations")
    parser.add_argument("--image-stats", type=Path, help="statistics of real images to compare those with")
    parser.add_argument("--extractor-weights", type=Path, help="of inception-768")
    parser.add_argument("--num-images", type=int, default=2000, help="a row")
    parser.add_argument("--work", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--minutes", type=float, default=20, help="training time of each method")
    parser.add_argument("--probe-steps", type=int, default=200, help="steps that take the speed")
    parser.add_argument("--class-conditional", action="store_true")
    parser.add_argument("--width", type=int, default=768, help="of the MLPs")
    parser.add_argument("--depth", type=int, default=8, help="of the MLPs")
    parser.add_argument("--time-shift", type=float, help="of the flow (default: measured)")
    parser.add_argument("--positions", type=int, default=8, help="codes of a representation")
    parser.add_argument("--num-codes", type=int, default=256)
    parser.add_argument("--code-depth", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--ema-decay", type=float, default=0.999)
    parser.add_argument("--held-out-share", type=float, default=0.2)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 15, 20, 250])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.model and not args.image_stats:
        parser.error("--model also needs --image-stats")
    result = measure(args)
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
