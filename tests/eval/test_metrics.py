"""The metrics against torch-fidelity run from end to end, and against slow hand-written ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from rcg.core.errors import UserError
from rcg.eval.extractors import FeatureExtractor, Features, extract
from rcg.eval.frechet import frechet_distance
from rcg.eval.metrics import (
    METRICS,
    compute_metrics,
    density_coverage,
    frechet,
    inception_score,
    kernel_inception_distance,
    metric_name,
    parse_metrics,
    precision_recall,
    why_unavailable,
)
from rcg.eval.references import ReferenceStats


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 32), torch.nn.Tanh())


def head() -> torch.nn.Module:
    torch.manual_seed(4)
    return torch.nn.Linear(32, 10)


class Ours(FeatureExtractor):
    def __init__(self) -> None:
        super().__init__()
        self.name, self.dim, self.has_logits, self.weights_hash = "inception", 32, True, "-"
        self.network, self.head = network(), head()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.network(images.float() / 128 - 1)
        return x, self.head(x)


class Theirs(FeatureExtractorBase):
    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        self.network, self.head = network(), head()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "f", "l"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "l" if metric == "isc" else "f"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.network(images.float() / 128 - 1)
        both = {"f": x, "l": self.head(x)}
        return tuple(both[name] for name in self.features_list)


class Tensors(torch.utils.data.Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


@pytest.fixture(scope="module")
def sets() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (230, 3, 8, 8), dtype=torch.uint8, generator=g)
    fake = torch.randint(0, 200, (210, 3, 8, 8), dtype=torch.uint8, generator=g)
    return fake, real


@pytest.fixture(scope="module")
def features(sets: tuple[Tensor, Tensor]) -> tuple[Features, Features]:
    fake, real = (extract(Ours(), images.split(50), progress=False) for images in sets)
    return fake, real


def stats(features: Features, extractor: str = "inception") -> ReferenceStats:
    return ReferenceStats.of(features.features, extractor, keep_features=True)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_equal_to_torch_fidelity_from_images(sets: tuple[Tensor, Tensor], features: tuple[Features, Features]) -> None:
    name = "rcg-test-extractor"
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(name, Theirs)
    theirs = torch_fidelity.calculate_metrics(
        input1=Tensors(sets[0]), input2=Tensors(sets[1]), feature_extractor=name, cuda=False, cache=False,
        verbose=False, fid=True, isc=True, kid=True, prc=True, kid_subset_size=210, rng_seed=7,
    )  # fmt: skip
    ours = compute_metrics(METRICS, "inception", features[0], stats(features[1]), seed=7)
    pairs = {
        "fid": "frechet_inception_distance",
        "isc": "inception_score_mean",
        "isc_std": "inception_score_std",
        "kid": "kernel_inception_distance_mean",
        "kid_std": "kernel_inception_distance_std",
        "precision": "precision",
        "recall": "recall",
        "f_score": "f_score",
    }
    assert set(ours.metrics) == {*pairs, "density", "coverage"}
    for mine, their in pairs.items():
        assert ours.metrics[mine] == pytest.approx(theirs[their], rel=2e-5, abs=1e-7), mine
    assert ours.settings["kid"] == {"generated": 210, "reference": 230, "subsets": 100, "subset_size": 210}
    assert ours.settings["isc"] == {"generated": 210, "splits": 10}
    assert not ours.unavailable
    assert 0 < ours.metrics["recall"] <= 1


@pytest.mark.parametrize("n", [400, 20])  # full rank, and fewer samples than features
def test_frechet_equals_our_own(n: int) -> None:
    g = np.random.default_rng(n)
    a = (g.normal(size=(n, 48)) @ g.normal(size=(48, 48))).astype(np.float32)
    b = (g.normal(size=(n + 5, 48)) @ g.normal(size=(48, 48)) + 0.3).astype(np.float32)
    value = frechet(ReferenceStats.of(a, "x"), ReferenceStats.of(b, "x"))
    assert value == pytest.approx(frechet_distance(a, b), rel=1e-6)
    assert value > 100
    assert frechet(ReferenceStats.of(a, "x"), ReferenceStats.of(a, "x")) == pytest.approx(0, abs=1e-3)


def test_inception_score_by_hand() -> None:
    logits = np.random.default_rng(0).normal(size=(90, 7)).astype(np.float32) * 2  # fewer than 100: one split
    found, settings = inception_score(logits, seed=0)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    q = p.mean(0)
    expected = np.exp(np.mean([np.sum(row * (np.log(row) - np.log(q))) for row in p]))
    assert found["isc"] == pytest.approx(expected, rel=1e-6)
    assert (found["isc_std"], settings["splits"]) == (0.0, 1)
    sure = np.eye(10, dtype=np.float32).repeat(200, 0) * 100  # certain and even: near the number of classes
    assert inception_score(sure, seed=1)[0]["isc"] == pytest.approx(10, rel=0.05)


def test_kid_by_hand() -> None:
    g = np.random.default_rng(1)
    x, y = g.normal(size=(60, 5)).astype(np.float32), g.normal(size=(60, 5)).astype(np.float32) + 0.5

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a.astype(np.float64) @ b / 5 + 1) ** 3)

    n = 60
    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    expected = within - 2 * sum(kernel(a, b) for a in x for b in y) / n**2
    found, settings = kernel_inception_distance(x, y, seed=0)
    assert found["kid"] == pytest.approx(expected, rel=1e-4)  # subsets of all 60: every one is the whole set
    assert found["kid_std"] == pytest.approx(0, abs=1e-5)
    assert settings["subset_size"] == 60


def test_kid_follows_the_seed() -> None:
    g = np.random.default_rng(2)
    x, y = g.normal(size=(90, 5)).astype(np.float32), g.normal(size=(60, 5)).astype(np.float32)
    one, same, other = (kernel_inception_distance(x, y, seed)[0]["kid"] for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_precision_and_recall_by_hand() -> None:
    g = np.random.default_rng(3)
    fake, real = g.normal(size=(40, 3)).astype(np.float32) * 0.5, g.normal(size=(50, 3)).astype(np.float32)

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        radius = [sorted(np.linalg.norm(centres - c, axis=1))[3] for c in centres]  # 0 is the point itself
        inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radius, strict=True)) for p in points]
        return float(np.mean(inside))

    found, _ = precision_recall(fake, real)
    assert found["precision"] == pytest.approx(covered(fake, real))
    assert found["recall"] == pytest.approx(covered(real, fake))
    assert found["precision"] > found["recall"] > 0  # narrow samples: good, but not diverse
    assert found["f_score"] == pytest.approx(
        2 * found["precision"] * found["recall"] / (found["precision"] + found["recall"])
    )


def test_only_the_whole_inception_earns_the_names() -> None:
    assert [metric_name(m, "inception") for m in ("fid", "kid_std", "precision")] == ["fid", "kid_std", "precision"]
    assert [metric_name(m, "inception-768") for m in ("fid", "kid", "recall")] == ["fid-768", "kid-768", "recall-768"]
    assert metric_name("fid", "encoder") == "frechet-encoder"
    assert metric_name("kid", "timm:resnet18") == "kid-timm:resnet18"


def test_what_cannot_be_had_is_said(features: tuple[Features, Features]) -> None:
    fake, real = features
    no_logits = Features(fake.features)
    known = stats(real, "inception-768")
    bare = ReferenceStats(known.mu, known.sigma, known.n, known.extractor)
    scores = compute_metrics(METRICS, "inception-768", no_logits, bare)
    assert list(scores.metrics) == ["fid-768"]
    assert set(scores.unavailable) == {"isc-768", "kid-768", "prc-768", "dc-768"}
    assert "logits" in scores.unavailable["isc-768"]
    assert "only their mu and sigma" in scores.unavailable["kid-768"]
    with pytest.raises(UserError, match=r"None of the metrics can be computed\. isc-768: the Inception Score needs"):
        compute_metrics(["isc"], "inception-768", no_logits, bare)
    assert why_unavailable("fid", "x", False, has_reference=False, has_reference_features=False) is not None
    assert why_unavailable("isc", "inception", True, has_reference=False, has_reference_features=False) is None


def test_few_samples(features: tuple[Features, Features]) -> None:
    fake, real = features
    few = Features(fake.features[:20], None)
    scores = compute_metrics(["fid", "kid", "prc"], "inception", few, stats(real))
    assert set(scores.metrics) == {"fid", "precision", "recall", "f_score"}
    assert "at least 50" in scores.unavailable["kid"]
    assert any("biased" in note for note in scores.notes)
    three = compute_metrics(["fid", "prc"], "inception", Features(fake.features[:3]), stats(real))
    assert list(three.metrics) == ["fid"]
    with pytest.raises(UserError, match="at least 2"):
        compute_metrics(["fid"], "inception", Features(fake.features[:1]), stats(real))


def test_parse_metrics() -> None:
    assert parse_metrics(["fid,isc", "KID", "fid"]) == ["fid", "isc", "kid"]
    assert parse_metrics(["prc, fid"]) == ["prc", "fid"]
    with pytest.raises(UserError, match="no metric 'fdi'"):
        parse_metrics(["fdi"])
    with pytest.raises(UserError, match="empty"):
        parse_metrics([","])


def test_density_and_coverage_are_the_papers() -> None:
    """Against equations 3 and 4 of arXiv 2002.09797, written out."""
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(60, 4)), rng.normal(size=(45, 4)) * 0.8 + 0.3
    inside = np.zeros((60, 45), bool)
    for i in range(60):
        radius = sorted(np.linalg.norm(real[i] - real[j]) for j in range(60) if j != i)[4]
        for j in range(45):
            inside[i, j] = np.linalg.norm(real[i] - fake[j]) < radius
    found, settings = density_coverage(fake.astype(np.float32), real.astype(np.float32))
    assert found == pytest.approx({"density": inside.sum() / (5 * 45), "coverage": inside.any(1).mean()})
    assert settings == {"neighbors": 5}


def test_density_and_coverage_see_what_they_should() -> None:
    rng = np.random.default_rng(0)
    real, same = rng.normal(size=(2, 600, 8)).astype(np.float32)
    alike = density_coverage(same, real)[0]
    assert alike["density"] == pytest.approx(1.0, abs=0.15)
    assert alike["coverage"] > 0.9
    dropped = density_coverage(same[same[:, 0] > 0], real)[0]  # half of the modes are missing
    assert dropped["coverage"] < 0.75
    far = density_coverage(same + 5, real)[0]
    assert far["density"] < 0.05
