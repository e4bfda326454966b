"""Do our figures agree with those of the other libraries on the same images, and where not, why?

    pip install --no-deps --target THERE pytorch-fid clean-fid torchmetrics lightning-utilities
    PYTHONPATH=THERE python benchmarks/metrics_agreement.py --generated A --reference B \\
        --weights inception_to_mixed_6e.pth --limit 96 --out benchmarks/results/metrics_agreement.json

A and B are folders of lossless images of one size. The weights are those of FID's Inception, whole or up to Mixed_6e, which is
enough for the layers with 64, 192 and 768 features. A difference has two causes, which are told apart: the features of the same
images, and the formula on the same features. The formulas also run on vectors that are drawn (more than dimensions), because a
matrix root of a covariance without full rank has few digits.

Each library runs in a process of its own, and says what it does; what is finished stays in --work and is not done again. Beside
the JSON a table is written. A library that is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from machine import cpu_name
from torch import Tensor, nn

from rcg.core.files import atomic_file, write_json
from rcg.data.sources import open_source
from rcg.eval.extractors import open_extractor
from rcg.eval.features import CPU_BLOCK
from rcg.eval.frechet import frechet_distance, frechet_distance_from_stats, gaussian_stats
from rcg.eval.images import ImageSet
from rcg.eval.inception import SIZE, InceptionExtractor, resize_like_tensorflow
from rcg.eval.kernels import kernel_inception_distance
from rcg.eval.neighbors import precision_recall
from rcg.eval.sliced import monge_inception_distance

LAYERS = (64, 192, 768)
SEED = 2020
DRAWN = (2000, 192)
"""Vectors of each side, and their dimensions, for the formulas alone."""
FEW = 32
"""Images of each side that go through torchmetrics' two networks."""
ROUNDING = "fp32 rounding of the features"
ROOTS = "fewer images than features: it takes roots of eigenvalues that are rounding noise, we none of those"
Rows = list[dict[str, Any]]
_begun = time.time()


def say(what: str) -> None:
    """A line of progress, with the seconds since the start."""
    print(f"  {time.time() - _begun:6.1f} s  {what}", flush=True)


class Sets:
    """Both sets of images, and what our Inception makes of them.

    Attributes:
        images: generated and reference, as an evaluation reads them.
        features: float32 [N, D] of both by layer; read from the work folder, where the process called "ours" puts them.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folders = args, (args.generated, args.reference)
        self.images = [ImageSet(open_source(f, min_size=1), "compared", limit=args.limit) for f in self.folders]
        self._file = args.work / "features.npz"
        self.features: dict[int, list[np.ndarray]] = {}
        if self._file.exists():
            with np.load(self._file) as file:
                self.features = {dim: [file[f"{dim}-{side}"] for side in (0, 1)] for dim in LAYERS}

    def kept(self, name: str, make: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
        """The arrays that `make` gives; from the work folder, if an earlier run has made them."""
        path = self.args.work / f"{name}.npz"
        if not path.exists():
            made = make()
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, *made)
            say(f"made: {name}")
        with np.load(path) as stored:
            return [stored[f"arr_{i}"] for i in range(len(stored.files))]

    def network(self) -> InceptionExtractor:
        """Our Inception, up to Mixed_6e."""
        found = open_extractor("inception-768", self.args.weights)
        assert isinstance(found, InceptionExtractor)
        return found

    def extract(self) -> None:
        """Our features of all layers, in one pass."""
        extractor = self.network()
        made: dict[int, list[np.ndarray]] = {dim: [] for dim in LAYERS}
        for pixels in self.pixels():
            seen: dict[int, list[Tensor]] = {dim: [] for dim in LAYERS}
            for part in pixels.split(CPU_BLOCK):
                for dim, rows in _layers(extractor, part).items():
                    seen[dim].append(rows)
            for dim, parts in seen.items():
                made[dim].append(torch.cat(parts).numpy())
            say(f"our features of {len(pixels)} images")
        arrays = {f"{dim}-{side}": rows for dim, both in made.items() for side, rows in enumerate(both)}
        with atomic_file(self._file) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
        self.features = made

    def files(self) -> list[list[str]]:
        """The files of each set, in order."""
        return [[str(s.source.folder / s.source.files[i]) for i in s.indices] for s in self.images]  # type: ignore[attr-defined]

    def pixels(self) -> list[Tensor]:
        """uint8 [N, 3, H, W] of each set."""
        return [torch.cat(list(images.batches(256))) for images in self.images]


@torch.inference_mode()
def _layers(extractor: InceptionExtractor, images: Tensor) -> dict[int, Tensor]:
    """Uint8 images [B, 3, H, W] → our features of each layer [B, D]: what leaves a layer, its mean over places."""
    net, found = extractor.network, {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, dim=dim: found.update({dim: out}))
        for dim, module in ((64, net.Conv2d_2b_3x3), (192, net.Conv2d_4a_3x3))
    ]
    last = extractor(images).features
    for hook in hooks:
        hook.remove()
    return {dim: F.max_pool2d(x, kernel_size=3, stride=2).mean((2, 3)) for dim, x in found.items()} | {768: last}


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Two sets of float32 vectors like features: correlated, none negative, more of them than dimensions."""
    rng = np.random.default_rng(0)
    count, dim = DRAWN
    mix = rng.normal(size=(dim, dim)) / np.sqrt(dim)
    sets = (np.maximum(rng.normal(shift, 1, (count, dim)) @ mix + 0.3, 0) for shift in (0, 0.1))
    a, b = (x.astype(np.float32) for x in sets)
    return a, b


def row(library: str, what: str, ours: float, theirs: float, why: str) -> dict[str, Any]:
    """One comparison of figures."""
    relative = abs(ours - theirs) / (abs(theirs) or 1.0)
    return {"library": library, "what": what, "ours": ours, "theirs": theirs, "relative": relative, "why": why}


def apart(library: str, what: str, ours: list[np.ndarray], theirs: list[np.ndarray], why: str) -> dict[str, Any]:
    """How far features of both sets lie apart, relative to their length."""
    a, b = (np.concatenate(x).astype(np.float64) for x in (ours, theirs))
    relative = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    return {"library": library, "what": what, "ours": None, "theirs": None, "relative": relative, "why": why}


def enough(dim: int, rows: list[np.ndarray]) -> bool:
    """Whether covariances of such rows have full rank."""
    return min(map(len, rows)) > dim


def reasons(*words: str) -> str:
    """Reasons in one cell."""
    return "; ".join(word for word in words if word)


@contextlib.contextmanager
def lenient_loading() -> Iterator[None]:
    """Let state dicts lack what lies after Mixed_6e (no layer used here does)."""
    original = nn.Module.load_state_dict

    def load(module: Any, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return original(module, state, strict=False, assign=assign)

    with mock.patch.object(nn.Module, "load_state_dict", load):
        yield


class _Pixels(torch.utils.data.Dataset[Tensor]):
    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


# ---------------------------------------------------------------------- libraries


def with_torch_fidelity(sets: Sets) -> Rows:
    """From the same images through its own program, and its formulas on the same vectors."""
    import torch_fidelity
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    me, rows = "torch-fidelity", []
    pixels = sets.pixels()
    with lenient_loading():
        network = FeatureExtractorInceptionV3(
            "inception-partial", [str(dim) for dim in LAYERS], feature_extractor_weights_path=str(sets.args.weights)
        ).eval()

    @torch.inference_mode()
    def extract(side: Tensor) -> list[np.ndarray]:
        return [torch.cat(x).numpy() for x in zip(*(network(p) for p in side.split(16)), strict=True)]

    found = [sets.kept(f"{me}-{i}", lambda side=side: extract(side)) for i, side in enumerate(pixels)]
    for i, dim in enumerate(LAYERS):
        theirs = [side[i] for side in found]
        rows.append(apart(me, f"features, {dim}", sets.features[dim], theirs, "fp32: we fold BatchNorm into weights"))
    name = "inception-partial"
    torch_fidelity.register_feature_extractor(name, FeatureExtractorInceptionV3)
    size = min(*map(len, pixels), 1000)
    common = {
        "input1": _Pixels(pixels[0]), "input2": _Pixels(pixels[1]), "feature_extractor": name, "save_cpu_ram": True,
        "feature_extractor_weights_path": str(sets.args.weights), "cuda": False, "cache": False, "verbose": False,
        "rng_seed": SEED, "kid_subset_size": size, "batch_size": 16,
    }  # fmt: skip
    layers = {f"feature_layer_{m}": "768" for m in ("fid", "kid", "prc")}
    with lenient_loading():
        figures = torch_fidelity.calculate_metrics(**common, **layers, fid=True, kid=True, prc=True)
    say("its program")
    for i, dim in enumerate(LAYERS):
        ours = sets.features[dim]
        one, two = (fid_features_to_statistics(torch.from_numpy(side[i])) for side in found)
        theirs = figures if dim == 768 else fid_statistics_to_metric(one, two, verbose=False)
        why = reasons(ROUNDING, "means in float32", "" if enough(dim, ours) else ROOTS)
        rows.append(row(me, f"FID-{dim}", frechet_distance(*ours), theirs["frechet_inception_distance"], why))
    kid = kernel_inception_distance(ours[0], ours[1], SEED)[0]["kid"]
    why = reasons(ROUNDING, "kernels in float32, ours in float64")
    rows.append(row(me, "KID-768", kid, figures["kernel_inception_distance_mean"], why))
    for key, value in precision_recall(*ours)[0].items():
        rows.append(row(me, f"{key}-768", value, figures[key], f"{ROUNDING}, at the balls' edges"))
    a, b = drawn()
    both = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    theirs = fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"]
    rows.append(row(me, "Fréchet distance, drawn vectors", frechet_distance(a, b), theirs, "means in float32"))
    tensors, how = [torch.from_numpy(x) for x in (a, b)], {"rng_seed": SEED, "verbose": False}
    theirs = kid_features_to_metric(*tensors, kid_subset_size=1000, kid_subsets=100, **how)
    ours = kernel_inception_distance(a, b, SEED)[0]["kid"]
    rows.append(row(me, "KID, drawn vectors", ours, theirs["kernel_inception_distance_mean"], "kernels in float32"))
    theirs = prc_features_to_metric(*tensors, prc_neighborhood=3, verbose=False)
    for key, value in precision_recall(a, b)[0].items():
        rows.append(row(me, f"{key}, drawn vectors", value, theirs[key], "none: the same function"))
    with contextlib.suppress(ImportError):  # from its next version on
        from torch_fidelity.metric_mind import mind_features_to_metric

        theirs = mind_features_to_metric(*tensors, mind_num_projections=1000, rng_seed=SEED, cuda=False, verbose=False)
        mind = monge_inception_distance(a, b, SEED)[0]["mind"]
        rows.append(row(me, "MIND, drawn vectors", mind, theirs["monge_inception_distance"], "float32 sums"))
    return rows


def with_pytorch_fid(sets: Sets) -> Rows:
    """Its Inception with its own resize, and on images that TensorFlow's resize has brought to size before."""
    from pytorch_fid import fid_score, inception

    me, rows = "pytorch-fid", []
    state = torch.load(sets.args.weights, map_location="cpu", weights_only=True)
    with lenient_loading(), mock.patch.object(inception, "load_state_dict_from_url", return_value=state):
        blocks = [inception.InceptionV3.BLOCK_INDEX_BY_DIM[dim] for dim in LAYERS]
        model = inception.InceptionV3(blocks).eval()
    say("its network")

    def figure(features: list[np.ndarray]) -> float:
        return float(fid_score.calculate_frechet_distance(*gaussian_stats(features[0]), *gaussian_stats(features[1])))

    @torch.inference_mode()
    def extract(batches: Iterator[Tensor]) -> list[np.ndarray]:
        parts = [[x.mean((2, 3)) for x in model(batch)] for batch in batches]
        return [torch.cat(x).double().numpy() for x in zip(*parts, strict=True)]

    def resized(side: Tensor) -> Iterator[Tensor]:
        return (resize_like_tensorflow(part.float(), SIZE) / 255 for part in side.split(16))

    def read(files: list[str]) -> Iterator[Tensor]:
        data = fid_score.ImagePathDataset(files, fid_score.TF.ToTensor())
        return iter(torch.utils.data.DataLoader(data, batch_size=16))

    sized = [
        sets.kept(f"{me}-resized-{i}", lambda side=side: extract(resized(side))) for i, side in enumerate(sets.pixels())
    ]
    plain = [sets.kept(f"{me}-{i}", lambda files=files: extract(read(files))) for i, files in enumerate(sets.files())]
    scale = "it scales pixels by 2x/255 - 1, FID's own program by (x - 128)/128"
    resize = "it resizes by PyTorch's bilinear interpolation (half-pixel centres), FID's own program by TensorFlow 1's"
    for i, dim in enumerate(LAYERS):
        ours = sets.features[dim]
        full = enough(dim, ours)
        theirs = [side[i] for side in sized]
        rows.append(apart(me, f"features, {dim}, resized by TensorFlow's way", ours, theirs, scale))
        rows.append(apart(me, f"features, {dim}", ours, [side[i] for side in plain], reasons(resize, scale)))
        both = {way: [side[i] for side in found] for way, found in (("sized", sized), ("plain", plain))}
        value = {
            way: float(sets.kept(f"{me}-{way}-{dim}", lambda given=given: [np.array(figure(given))])[0])
            for way, given in both.items()
        }
        roots = "" if full else ROOTS
        why = roots or "rounding"
        rows.append(
            row(me, f"FID-{dim}, both formulas on its features", frechet_distance(*theirs), value["sized"], why)
        )
        what = f"FID-{dim}, resized by TensorFlow's way"
        rows.append(row(me, what, frechet_distance(*ours), value["sized"], reasons(scale, roots)))
        why = reasons(resize, scale, roots)
        rows.append(row(me, f"FID-{dim}", frechet_distance(*ours), value["plain"], why))
        say(f"its distances, {dim} features")
    a, b = drawn()
    rows.append(row(me, "Fréchet distance, drawn vectors", frechet_distance(a, b), figure([a, b]), "rounding"))
    return rows


def with_clean_fid(sets: Sets) -> Rows:
    """Its formulas on the same vectors and features, and its resize in front of our Inception (its own is a file of TorchScript
    with the whole network)."""
    from cleanfid import fid
    from cleanfid.resize import build_resizer

    me, (a, b) = "clean-fid", drawn()
    theirs = float(fid.frechet_distance(*gaussian_stats(a), *gaussian_stats(b)))
    rows = [row(me, "Fréchet distance, drawn vectors", frechet_distance(a, b), theirs, "rounding")]
    for dim in LAYERS:
        ours = sets.features[dim]
        theirs = float(fid.frechet_distance(*gaussian_stats(ours[0]), *gaussian_stats(ours[1])))
        why = "rounding" if enough(dim, ours) else ROOTS
        rows.append(row(me, f"FID-{dim}, its formula on our features", frechet_distance(*ours), theirs, why))
    say("its formulas")
    a, b = (x[:1000].astype(np.float64) for x in (a, b))  # one subset of all
    kid = kernel_inception_distance(a, b, SEED)[0]["kid"]
    theirs = fid.kernel_distance(a, b, num_subsets=1, max_subset_size=1000)
    rows.append(row(me, "KID, drawn vectors", kid, theirs, "rounding"))
    clean, network = build_resizer("clean"), sets.network()

    @torch.inference_mode()
    def extract(folder: Path, pixels: Tensor) -> list[np.ndarray]:
        """Features behind our frame, features behind its resize, and how far pixels lie apart at most."""
        framed = ImageSet(open_source(folder, min_size=1), "compared", image_size=SIZE, limit=sets.args.limit)
        rounded, exact, most = [], [], 0.0
        for part, ready in zip(pixels.split(16), framed.batches(16), strict=True):
            x = torch.from_numpy(np.stack([clean(image) for image in part.permute(0, 2, 3, 1).numpy()]))
            x = x.permute(0, 3, 1, 2)
            most = max(most, float((x - ready).abs().max()))
            rounded.append(network(ready).features)
            exact.append(network.network(((x - 128) / 128).contiguous(memory_format=torch.channels_last)).features)
        return [torch.cat(rounded).numpy(), torch.cat(exact).numpy(), np.array(most)]

    features = [
        sets.kept(f"{me}-{i}", lambda folder=folder, pixels=pixels: extract(folder, pixels))
        for i, (folder, pixels) in enumerate(zip(sets.folders, sets.pixels(), strict=True))
    ]
    why = (
        "it keeps Pillow's bicubic resize in floats and clips at the end, --image-size 299 is Pillow's own in 8 bits, which rounds "
        "and clips after each of its two passes"
    )
    ours, exactly = ([side[i] for side in features] for i in (0, 1))
    rows.append(
        row(
            me,
            "pixels after the clean resize: largest difference in levels",
            float(max(side[2] for side in features)),
            0.0,
            why,
        )
    )
    rows.append(apart(me, "features, 768, behind the clean resize and --image-size 299", ours, exactly, why))
    rows.append(row(me, "FID-768, the same", frechet_distance(*ours), frechet_distance(*exactly), why))
    return rows


def with_torchmetrics(sets: Sets) -> Rows:
    """Its FID from images to figure, with its two ways to resize, and its FID and KID of the same vectors."""
    from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
    from torchmetrics.image.kid import KernelInceptionDistance

    class Given(nn.Module):
        """An extractor of features that are there."""

        def __init__(self, num_features: int) -> None:
            super().__init__()
            self.num_features = num_features

        def forward(self, rows: Tensor) -> Tensor:
            return rows

    me, rows, (a, b) = "torchmetrics", [], drawn()

    def figure(metric: Any, fake: Tensor, real: Tensor) -> float:
        for given, is_real in ((fake, False), (real, True)):
            for part in given.split(16):
                metric.update(part, real=is_real)
        found = metric.compute()
        return float(found[0] if isinstance(found, tuple) else found)

    double = [torch.from_numpy(x).double() for x in (a, b)]
    theirs = figure(FrechetInceptionDistance(Given(DRAWN[1])), *double)
    rows.append(row(me, "Fréchet distance, drawn vectors", frechet_distance(a, b), theirs, "rounding"))
    few = [x[:1000] for x in double]
    theirs = figure(KernelInceptionDistance(Given(DRAWN[1]), subsets=2, subset_size=1000), *few)
    kid = kernel_inception_distance(a[:1000], b[:1000], SEED)[0]["kid"]
    rows.append(row(me, "KID, drawn vectors", kid, theirs, "rounding, one subset of all"))
    for dim in LAYERS:
        ours = sets.features[dim]
        theirs = figure(FrechetInceptionDistance(Given(dim)), *(torch.from_numpy(x).double() for x in ours))
        why = "rounding" if enough(dim, ours) else ROOTS
        rows.append(row(me, f"FID-{dim}, its formula on our features", frechet_distance(*ours), theirs, why))
    say("its formulas")
    antialias = "it resizes by PyTorch's bilinear interpolation with half-pixel centres (antialias=True, its default)"
    weights, pixels = str(sets.args.weights), [side[:FEW] for side in sets.pixels()]
    say(f"from images on: the first {FEW} of each side")
    for smooth in (False, True):
        with lenient_loading():
            network = NoTrainInceptionV3("inception-v3-compat", [str(dim) for dim in LAYERS], weights, smooth)
            least = FrechetInceptionDistance(64, feature_extractor_weights_path=weights, antialias=smooth)

        @torch.inference_mode()
        def extract(side: Tensor, network: Any = network) -> list[np.ndarray]:
            parts = [network._torch_fidelity_forward(p) for p in side.split(16)]
            return [torch.cat(x).flatten(1).double().numpy() for x in zip(*parts, strict=True)]

        found = [sets.kept(f"{me}-{smooth}-{i}", lambda side=side: extract(side)) for i, side in enumerate(pixels)]
        with torch.inference_mode():
            figures = {64: figure(least, *pixels)}  # from images on
        say(f"its program, antialias={smooth}")
        for i, dim in enumerate(LAYERS):
            ours, theirs = [side[:FEW] for side in sets.features[dim]], [side[i] for side in found]
            why, what = (
                antialias if smooth else "fp32: we fold BatchNorm into weights",
                f"{dim}, antialias={smooth}, {len(pixels[0])} images",
            )
            rows.append(apart(me, f"features, {what}", ours, theirs, why))
            value = figures.get(dim) or figure(FrechetInceptionDistance(Given(dim)), *map(torch.from_numpy, theirs))
            why = reasons(antialias if smooth else ROUNDING, "" if enough(dim, ours) else ROOTS)
            why = reasons(why, "the figure rounded to float32" if dim in figures else "")
            rows.append(row(me, f"FID-{what}", frechet_distance(*ours), value, why))
    return rows


def of_ours(sets: Sets) -> Rows:
    """What must be so: a set against itself, two halves, known Gaussians."""
    sets.extract()
    ours = sets.features[768]
    rows = [row("itself", "FID-768 of a set and itself", frechet_distance(ours[0], ours[0]), 0.0, "rounding")]
    rng = np.random.default_rng(0)
    s1, s2, shift = rng.uniform(0.1, 3, 768), rng.uniform(0.1, 3, 768), rng.normal(size=768)
    known = float((shift**2).sum() + ((np.sqrt(s1) - np.sqrt(s2)) ** 2).sum())
    found = frechet_distance_from_stats(shift, np.diag(s1), np.zeros(768), np.diag(s2))
    return [*rows, row("closed form", "two Gaussians of 768 dimensions", found, known, "rounding")]


OURS = "ours"
LIBRARIES: dict[str, tuple[str, str, Callable[[Sets], Rows]]] = {
    OURS: ("rcg", "rcg", of_ours),
    "torch-fidelity": ("torch_fidelity", "torch-fidelity", with_torch_fidelity),
    "pytorch-fid": ("pytorch_fid", "pytorch-fid", with_pytorch_fid),
    "clean-fid": ("cleanfid", "clean-fid", with_clean_fid),
    "torchmetrics": ("torchmetrics", "torchmetrics", with_torchmetrics),
}


def table(rows: Rows) -> str:
    """All comparisons as Markdown."""

    def figure(value: float | None) -> str:
        return "–" if value is None else f"{value:.10g}"

    lines = ["| library | what | ours | theirs | relative difference | reason |", "|---|---|---:|---:|---:|---|"]
    for r in rows:
        cells = (r["library"], r["what"], figure(r["ours"]), figure(r["theirs"]), f"{r['relative']:.1e}", r["why"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run_each(args: argparse.Namespace) -> tuple[Rows, dict[str, str], list[str]]:
    """Every library in its process: rows, versions, and those that are not installed."""
    rows, versions, missing = [], {"torch": torch.__version__}, []
    for name, (module, package, _) in LIBRARIES.items():
        if importlib.util.find_spec(module) is None:
            print(f"{name} is not installed and left out.")
            missing.append(name)
            continue
        if name != OURS:
            versions[package] = metadata.version(package)
        done = args.work / f"{name}.json"
        if not done.exists():
            print(name, flush=True)
            subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--work", args.work, "--library", name], check=True
            )
        rows += json.loads(done.read_text())["rows"]
    return rows, versions, missing


def main() -> None:
    """Parse the flags, compare, print a table, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="of FID's Inception, at least up to Mixed_6e")
    parser.add_argument("--limit", type=int, default=96, help="images of each side")
    parser.add_argument("--work", type=Path, help="what finished libraries found; for one run of the same flags")
    parser.add_argument("--library", choices=LIBRARIES, help="this one alone, in this process (for --work)")
    parser.add_argument("--out", type=Path, help="JSON; the table is written beside it as .md")
    args = parser.parse_args()
    if args.library is not None:
        write_json(args.work / f"{args.library}.json", {"rows": LIBRARIES[args.library][2](Sets(args))})
        return
    with contextlib.ExitStack() as stack:
        args.work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        args.work.mkdir(parents=True, exist_ok=True)
        rows, versions, missing = run_each(args)
        counts = [len(images) for images in Sets(args).images]
    print(table(rows))
    if args.out:
        machine = f"{cpu_name()}, {torch.get_num_threads()} threads, {platform.machine()}"
        found = {"rows": rows, "versions": versions, "missing": missing, "images": counts, "machine": machine}
        write_json(args.out, found)
        told = ", ".join(f"{name} {version}" for name, version in versions.items())
        words = (
            f"Made by `benchmarks/metrics_agreement.py` of {counts[0]} generated and {counts[1]} real images, and of "
            f"{DRAWN[0]:,} drawn vectors of {DRAWN[1]} dimensions on each side; {told}."
        )
        with atomic_file(args.out.with_suffix(".md")) as temporary:
            temporary.write_text(f"# Our figures beside those of other libraries\n\n{words}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
