"""Do our figures agree with those of the other libraries on the same images, and where not, why?

    pip install --no-deps pytorch-fid clean-fid torchmetrics lightning-utilities
    python benchmarks/metrics_agreement.py --generated A --reference B --weights inception_to_mixed_6e.pth --limit 1000 \\
        --out benchmarks/results/metrics_agreement.json

A and B are folders of images of one size, lossless. The weights are those of FID's Inception, whole or up to Mixed_6e, so that
the layers with 64, 192 and 768 features can be compared. A library that is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import platform
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import torch_fidelity
from machine import cpu_name
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from rcg.core.files import write_json
from rcg.data.sources import open_source
from rcg.eval.extractors import open_extractor
from rcg.eval.features import FeatureExtractor, Outputs, extract
from rcg.eval.frechet import frechet_distance, frechet_distance_from_stats, gaussian_stats
from rcg.eval.images import ImageSet
from rcg.eval.inception import SIZE, InceptionExtractor, resize_like_tensorflow
from rcg.eval.kernels import kernel_inception_distance
from rcg.eval.neighbors import precision_recall
from rcg.eval.sliced import monge_inception_distance

LAYERS = (64, 192, 768)
SEED = 2020
ROUNDING = "fp32 rounding of the features"
NOISE = f"{ROUNDING}; with fewer images than features, it also counts roots of rounding noise as eigenvalues, we do not"
Rows = list[dict[str, Any]]


class Layer(FeatureExtractor):
    """An early layer of our Inception, behind its resize: the mean over places."""

    def __init__(self, inception: InceptionExtractor, dim: int) -> None:
        super().__init__()
        self.inception, self.dim, self.name, self.weights_hash = inception, dim, f"inception-{dim}", "-"

    def forward(self, images: Tensor) -> Outputs:
        if self.dim == 768:
            return self.inception(images)
        net = self.inception.network
        x = (resize_like_tensorflow(images.float(), SIZE) - 128) / 128
        x = F.max_pool2d(net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3(x))), kernel_size=3, stride=2)
        if self.dim == 192:
            x = F.max_pool2d(net.Conv2d_4a_3x3(net.Conv2d_3b_1x1(x)), kernel_size=3, stride=2)
        return Outputs(x.mean((2, 3)))


class Sets:
    """Both sets, by our features of each layer."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        inception = open_extractor("inception-768", args.weights)
        assert isinstance(inception, InceptionExtractor)
        self.layers = {dim: Layer(inception, dim) for dim in LAYERS}
        self.folders = (args.generated, args.reference)
        self.images = [ImageSet(open_source(f, min_size=1), "compared", limit=args.limit) for f in self.folders]
        self.features = {
            dim: [extract(layer, images.batches(64)).features for images in self.images]
            for dim, layer in self.layers.items()
        }

    def files(self) -> list[list[str]]:
        """The files of each set, in order."""
        return [[str(s.source.folder / s.source.files[i]) for i in s.indices] for s in self.images]  # type: ignore[attr-defined]

    def pixels(self) -> list[Tensor]:
        """uint8 [N, 3, H, W] of each set."""
        return [torch.cat(list(images.batches(256))) for images in self.images]


def row(library: str, what: str, ours: float, theirs: float, why: str) -> dict[str, Any]:
    """One comparison."""
    relative = abs(ours - theirs) / (abs(theirs) or 1.0)
    return {"library": library, "what": what, "ours": ours, "theirs": theirs, "relative": relative, "why": why}


@contextlib.contextmanager
def lenient_loading() -> Iterator[None]:
    """Let state dicts lack what lies after Mixed_6e."""
    original = torch.nn.Module.load_state_dict

    def load(module: Any, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return original(module, state, strict=False, assign=assign)

    with mock.patch.object(torch.nn.Module, "load_state_dict", load):
        yield


class _Pixels(torch.utils.data.Dataset[Tensor]):
    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


def with_torch_fidelity(sets: Sets) -> Rows:
    """From the same images through its own program."""
    name = "inception-partial"
    torch_fidelity.register_feature_extractor(name, FeatureExtractorInceptionV3)
    one, two = map(_Pixels, sets.pixels())
    size, rows = min(len(one), len(two), 1000), []
    common = {
        "input1": one, "input2": two, "feature_extractor": name, "feature_extractor_weights_path": str(sets.args.weights),
        "cuda": False, "cache": False, "verbose": False, "rng_seed": SEED, "kid_subset_size": size,
    }  # fmt: skip
    for dim in LAYERS:
        last = dim == 768
        layers = {f"feature_layer_{m}": str(dim) for m in ("fid", "kid", "prc")}
        with lenient_loading():
            theirs = torch_fidelity.calculate_metrics(**common, **layers, fid=True, kid=last, prc=last)
        ours = sets.features[dim]
        figure = frechet_distance(*ours)
        rows.append(row("torch-fidelity", f"FID-{dim}", figure, theirs["frechet_inception_distance"], NOISE))
        if last:
            kid = kernel_inception_distance(*ours, SEED)[0]["kid"]
            why = f"{ROUNDING}; it computes kernels in float32, we in float64"
            rows.append(row("torch-fidelity", "KID-768", kid, theirs["kernel_inception_distance_mean"], why))
            for key, value in precision_recall(*ours)[0].items():
                rows.append(row("torch-fidelity", f"{key}-768", value, theirs[key], f"{ROUNDING} at the balls' edges"))
    with contextlib.suppress(ImportError):  # from its next version on
        from torch_fidelity.metric_mind import mind_features_to_metric

        tensors = [torch.from_numpy(x) for x in sets.features[768]]
        theirs = mind_features_to_metric(*tensors, mind_num_projections=1000, rng_seed=SEED, cuda=False, verbose=False)
        mind = monge_inception_distance(*sets.features[768], SEED)[0]["mind"]
        rows.append(row("torch-fidelity", "MIND-768", mind, theirs["monge_inception_distance"], "float32 sums"))
    return rows


def with_pytorch_fid(sets: Sets) -> Rows:
    """Its Inception with its own resize, and with images resized beforehand as TensorFlow does."""
    from pytorch_fid import fid_score, inception

    state = torch.load(sets.args.weights, map_location="cpu", weights_only=True)
    rows = []
    for dim in LAYERS:
        block = inception.InceptionV3.BLOCK_INDEX_BY_DIM[dim]
        with lenient_loading(), mock.patch.object(inception, "load_state_dict_from_url", return_value=state):
            model = inception.InceptionV3([block]).eval()
        found = [fid_score.get_activations(files, model, 50, dim, "cpu", 0) for files in sets.files()]
        theirs = fid_score.calculate_frechet_distance(*gaussian_stats(found[0]), *gaussian_stats(found[1]))
        why = "it resizes by PyTorch's bilinear interpolation (half-pixel centres), FID's own program by TensorFlow 1's"
        rows.append(row("pytorch-fid", f"FID-{dim}", frechet_distance(*sets.features[dim]), theirs, why))
        model.resize_input = False

        def features(pixels: Tensor, model: Any = model) -> np.ndarray:
            parts = [
                model(resize_like_tensorflow(part.float(), SIZE) / 255)[0].mean((2, 3)) for part in pixels.split(50)
            ]
            return torch.cat(parts).double().numpy()

        with torch.inference_mode():
            found = [features(pixels) for pixels in sets.pixels()]
        theirs = fid_score.calculate_frechet_distance(*gaussian_stats(found[0]), *gaussian_stats(found[1]))
        why = "it scales pixels by 2x/255 - 1, FID's own program by (x - 128)/128"
        rows.append(
            row("pytorch-fid", f"FID-{dim}, resized beforehand", frechet_distance(*sets.features[dim]), theirs, why)
        )
    return rows


def with_clean_fid(sets: Sets) -> Rows:
    """Its formulas on our features, and its resize against `--image-size 299`."""
    from cleanfid import fid
    from cleanfid.resize import build_resizer

    ours = sets.features[768]
    theirs = fid.frechet_distance(*gaussian_stats(ours[0]), *gaussian_stats(ours[1]))
    rows = [
        row(
            "clean-fid",
            "FID-768, formula",
            frechet_distance(*ours),
            theirs,
            "its matrix root (scipy's sqrtm): with fewer images than features, roots of rounding noise",
        )
    ]
    size = min(len(x) for x in ours)
    if size <= 1000:  # one subset, of all
        equal = [x[:size].astype(np.float64) for x in ours]
        kid = kernel_inception_distance(*equal, SEED)[0]["kid"]
        theirs = fid.kernel_distance(*equal, num_subsets=1, max_subset_size=size)
        rows.append(
            row("clean-fid", "KID-768, formula", kid, theirs, "its estimate takes all pairs of the cross term alike")
        )
    clean, framed = build_resizer("clean"), []
    for folder in sets.folders:
        images = ImageSet(open_source(folder, min_size=1), "compared", image_size=SIZE, limit=sets.args.limit)
        framed.append(extract(sets.layers[768], images.batches(64)).features)
    exact = []
    network = sets.layers[768].inception
    for pixels in sets.pixels():
        parts = []
        for part in pixels.split(16):
            resized = np.stack([clean(image) for image in part.permute(0, 2, 3, 1).numpy()])
            with torch.inference_mode():
                parts.append(
                    network.network((torch.from_numpy(resized).permute(0, 3, 1, 2) - 128) / 128).features.numpy()
                )
        exact.append(np.concatenate(parts))
    why = "it keeps fractions of levels after the resize to 299 px, --image-size 299 rounds to 8 bits"
    rows.append(row("clean-fid", "FID-768, clean resize", frechet_distance(*framed), frechet_distance(*exact), why))
    return rows


def with_torchmetrics(sets: Sets) -> Rows:
    """Its FID and KID around our extractor."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Wrapped(torch.nn.Module):
        num_features = 768

        def forward(self, images: Tensor) -> Tensor:
            return sets.layers[768](images).features

    ours, rows = sets.features[768], []
    size = min(min(len(x) for x in ours), 1000)
    metrics = {
        "FID-768": FrechetInceptionDistance(Wrapped()).set_dtype(torch.float64),
        "KID-768": KernelInceptionDistance(Wrapped(), subsets=100, subset_size=size),
    }
    fake, real = sets.pixels()
    with torch.inference_mode():
        for metric in metrics.values():
            for pixels, is_real in ((fake, False), (real, True)):
                for part in pixels.split(16):
                    metric.update(part, real=is_real)
        theirs = {name: metric.compute() for name, metric in metrics.items()}
    why = "eigenvalues of a product of covariances: with fewer images than features, roots of rounding noise"
    rows.append(row("torchmetrics", "FID-768", frechet_distance(*ours), float(theirs["FID-768"]), why))
    kid = kernel_inception_distance(*ours, SEED)[0]["kid"]
    why = "other random subsets" if size < max(len(x) for x in ours) else "kernels in float32"
    rows.append(row("torchmetrics", "KID-768", kid, float(theirs["KID-768"][0]), why))
    return rows


def of_ours(sets: Sets) -> Rows:
    """What must be so: a set against itself, known Gaussians."""
    ours = sets.features[768]
    rows = [row("itself", "FID-768 of a set and itself", frechet_distance(ours[0], ours[0]), 0.0, "rounding")]
    rng = np.random.default_rng(0)
    s1, s2, shift = rng.uniform(0.1, 3, 768), rng.uniform(0.1, 3, 768), rng.normal(size=768)
    known = float((shift**2).sum() + ((np.sqrt(s1) - np.sqrt(s2)) ** 2).sum())
    found = frechet_distance_from_stats(shift, np.diag(s1), np.zeros(768), np.diag(s2))
    return [*rows, row("closed form", "two Gaussians of 768 dimensions", found, known, "rounding")]


LIBRARIES: dict[str, tuple[str, Callable[[Sets], Rows]]] = {
    "torch-fidelity": ("torch_fidelity", with_torch_fidelity),
    "pytorch-fid": ("pytorch_fid", with_pytorch_fid),
    "clean-fid": ("cleanfid", with_clean_fid),
    "torchmetrics": ("torchmetrics", with_torchmetrics),
}


def main() -> None:
    """Parse the flags, compare, print a table, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="of FID's Inception, at least up to Mixed_6e")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sets = Sets(args)
    rows, versions = of_ours(sets), {"torch": torch.__version__}
    for name, (module, compare) in LIBRARIES.items():
        if importlib.util.find_spec(module) is None:
            print(f"{name} is not installed and left out.")
            continue
        versions[name] = metadata.version(name)
        rows += compare(sets)
    print("| library | what | ours | theirs | relative difference | reason |\n|---|---|---:|---:|---:|---|")
    for r in rows:
        print(
            f"| {r['library']} | {r['what']} | {r['ours']:.8g} | {r['theirs']:.8g} | {r['relative']:.1e} | {r['why']} |"
        )
    if args.out:
        counts = [len(images) for images in sets.images]
        machine = f"{cpu_name()}, {torch.get_num_threads()} threads, {platform.machine()}"
        write_json(args.out, {"rows": rows, "versions": versions, "images": counts, "machine": machine})


if __name__ == "__main__":
    main()
