"""Which metric sees what? Real images, spoilt in one way at a time, scored by every metric.

    python benchmarks/metric_sensitivity.py --data TRAIN --extractor inception-768 --weights inception_to_mixed_6e.pth \\
        --samples 1000 --out benchmarks/results/metric_sensitivity.json

Beside the JSON a table is written.

From the images three sets are drawn that share none: a reference ("training images"), a held-out set, and what is spoilt.
The clean set is scored for several draws; their spread is the unit: a change is given as the number of such standard deviations
by which a figure moves, and counts as seen from SEEN of them on (for a share of images, a deviation is at least one image). TRAIN needs one folder a class (for the dropped classes), and
more than (2 + repeats) times as many images as are sampled.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from features import open_named
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from rcg.core.errors import UserError
from rcg.core.files import atomic_file, write_json
from rcg.data.sources import open_source
from rcg.eval.evaluate import Evaluator
from rcg.eval.images import ImageSet, StreamImages
from rcg.eval.metrics import metric_name
from rcg.eval.reports import versions

METRICS = ("fid", "sfid", "fid_infinity", "kid", "prc", "dc", "mind", "vendi", "fld", "copies", "ct")
SHARES = ("precision", "recall", "f_score", "coverage", "copies")
SEEN = 5.0
Spoil = Callable[["Drawn"], Tensor]


class Drawn:
    """What is spoilt.

    Attributes:
        pixels: uint8 [N, 3, H, W].
        classes: int64 [N].
        training: uint8 [N, 3, H, W], the reference.
        rng: of the spoiling.
    """

    def __init__(self, pixels: Tensor, classes: np.ndarray, training: Tensor) -> None:
        self.pixels, self.classes, self.training = pixels, torch.from_numpy(classes), training
        self.rng = torch.Generator().manual_seed(0)


def blurred(drawn: Drawn) -> Tensor:
    """Gaussian, σ = 0.8 px."""
    return gaussian_blur(drawn.pixels, [5, 5], [0.8, 0.8])


def noisy(drawn: Drawn) -> Tensor:
    """Gaussian noise, σ = 10 levels."""
    noise = torch.randn(drawn.pixels.shape, generator=drawn.rng) * 10
    return (drawn.pixels + noise).round().clamp(0, 255).byte()


def compressed(drawn: Drawn) -> Tensor:
    """JPEG of quality 75."""

    def once(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=75)
        return np.asarray(Image.open(file))

    images = [once(image) for image in drawn.pixels.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def resampled(drawn: Drawn) -> Tensor:
    """To three quarters of the size and back, without antialias."""
    size = drawn.pixels.shape[2:]
    small = F.interpolate(drawn.pixels.float(), scale_factor=0.75, mode="bilinear")
    return F.interpolate(small, size, mode="bilinear").round().clamp(0, 255).byte()


def brighter(drawn: Drawn) -> Tensor:
    """20 levels brighter."""
    return (drawn.pixels.int() + 20).clamp(0, 255).byte()


def shifted_patches(drawn: Drawn) -> Tensor:
    """The left half of each image in the place of the right one: the parts are right, their places are wrong."""
    half = drawn.pixels.shape[3] // 2
    return drawn.pixels.roll(half, dims=3)


def classes_dropped(drawn: Drawn) -> Tensor:
    """Only the images of the first half of the classes, each about twice."""
    few = drawn.pixels[drawn.classes <= drawn.classes.median()]
    return few[torch.arange(len(drawn.pixels)) % len(few)]


def duplicated(drawn: Drawn) -> Tensor:
    """A tenth of the images, ten times each."""
    few = drawn.pixels[: max(1, len(drawn.pixels) // 10)]
    return few[torch.arange(len(drawn.pixels)) % len(few)]


def memorised(drawn: Drawn) -> Tensor:
    """The training images themselves."""
    return drawn.training


SPOILS: dict[str, Spoil] = {
    "blur": blurred,
    "noise": noisy,
    "JPEG": compressed,
    "resampling": resampled,
    "brightness": brighter,
    "halves exchanged": shifted_patches,
    "classes dropped": classes_dropped,
    "duplicates": duplicated,
    "copies of training images": memorised,
}


def draw_sets(data: str, count: int, repeats: int) -> tuple[list[Tensor], list[np.ndarray]]:
    """2 + `repeats` disjoint sets of `count` images: pixels and classes of each."""
    source = open_source(data, min_size=1)
    images = ImageSet(source, "drawn", limit=count * (2 + repeats))
    if source.labels is None or len(images) < count * (2 + repeats):
        raise UserError(f"{data} must have one folder a class, and at least {count * (2 + repeats)} images.")
    pixels = torch.cat(list(images.batches(256)))
    labels = source.labels[images.indices]
    order = np.random.default_rng(0).permutation(len(pixels))
    parts = np.split(order, 2 + repeats)
    return [pixels[torch.from_numpy(part)] for part in parts], [labels[part] for part in parts]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, and by how many standard deviations they move."""
    sets, classes = draw_sets(args.data, args.samples, args.repeats)
    training, held_out, *clean = sets
    extractor = open_named(args.extractor, args.weights)
    evaluator = Evaluator(extractor, precision=args.precision, device=args.device)
    reference, unseen = (evaluator.make_stats(stream(x)) for x in (training, held_out))
    train = stream(training) if {"copies", "ct"} & set(args.metrics) else None

    def score(pixels: Tensor) -> dict[str, float]:
        """Figures by their plain names."""
        found = evaluator.evaluate(
            stream(pixels), reference=reference, metrics=args.metrics, held_out=unseen, train=train
        )["metrics"]
        plain = {metric_name(name, extractor.name): name for metric in METRICS for name in names_of(metric)}
        return {plain[name]: value for name, value in found.items() if name in plain}

    begun = time.perf_counter()
    found = [score(pixels) for pixels in clean]
    print(f"{len(clean)} clean sets scored after {time.perf_counter() - begun:.0f} s", flush=True)
    mean = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
    spread = {name: float(np.std([f[name] for f in found], ddof=1)) for name in found[0]}
    least = {name: max(value, 1 / args.samples if name in SHARES else 1e-9) for name, value in spread.items()}
    rows = {}
    for name, spoil in SPOILS.items():
        figures = score(spoil(Drawn(clean[0], classes[2], training)))
        moved = {m: (v - mean[m]) / least[m] for m, v in figures.items() if m in mean}
        rows[name] = {"figures": figures, "moved": moved, "what": (spoil.__doc__ or "").strip()}
        seen = [m for m, z in moved.items() if abs(z) >= SEEN]
        print(f"{name}: seen by {', '.join(seen) or 'none'} ({time.perf_counter() - begun:.0f} s)", flush=True)
    return {
        "samples": args.samples,
        "repeats": args.repeats,
        "clean": mean,
        "spread": spread,
        "spoilt": rows,
        "extractor": {"name": args.extractor, "weights": extractor.weights_hash, "precision": args.precision},
    }


def stream(pixels: Tensor) -> StreamImages:
    """Images in memory."""
    return StreamImages([pixels], len(pixels))


def names_of(metric: str) -> list[str]:
    """The figures of a metric."""
    return {"prc": ["precision", "recall"], "dc": ["density", "coverage"]}.get(metric, [metric])


def table(result: dict[str, Any]) -> str:
    """Figures of clean and spoilt images; in bold those that moved by SEEN standard deviations."""
    names = list(result["clean"])
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    lines.append(
        "| clean | " + " | ".join(f"{result['clean'][n]:.3g} ± {result['spread'][n]:.1g}" for n in names) + " |"
    )
    for spoil, row in result["spoilt"].items():
        cells = []
        for name in names:
            value, moved = row["figures"].get(name), row["moved"].get(name)
            text = "–" if value is None else f"{value:.3g}"
            cells.append(f"**{text}**" if moved is not None and abs(moved) >= SEEN else text)
        lines.append(f"| {spoil} | " + " | ".join(cells) + " |")
    told = [f"- {spoil}: {row['what']}" for spoil, row in result["spoilt"].items()]
    return "\n".join([*lines, "", *told])


def main() -> None:
    """Parse the flags, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of images, one folder a class")
    parser.add_argument("--extractor", default="inception")
    parser.add_argument("--weights", type=Path, help="of the extractor")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=4, help="clean sets, at least 2")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--metrics", nargs="+", default=METRICS, choices=METRICS)
    parser.add_argument("--out", type=Path, help="JSON; the table is written beside it as .md")
    args = parser.parse_args()
    result = measure(args)
    print(table(result))
    if args.out:
        write_json(args.out, result | {"versions": versions(), "seen": SEEN})
        words = (
            f"Made by `benchmarks/metric_sensitivity.py`: {args.samples} images of each set, features of "
            f"`{args.extractor}` in {args.precision}. Bold: moved by {SEEN:g} standard deviations of {args.repeats} clean "
            "sets or more."
        )
        with atomic_file(args.out.with_suffix(".md")) as temporary:
            temporary.write_text(f"# Which metric sees what\n\n{words}\n\n{table(result)}\n")


if __name__ == "__main__":
    main()
