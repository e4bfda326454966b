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
from rcg.eval.features import FeatureExtractor, Outputs
from rcg.eval.images import StreamImages
from rcg.eval.measure import Wanted, measure
from rcg.eval.metrics import (
    DEFAULT_METRICS,
    METRICS,
    REASONS,
    Metric,
    Sides,
    compute_metrics,
    metric_name,
    needs,
    parse_metrics,
    wanted_of,
    why_unavailable,
)
from rcg.eval.references import ImageStats


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

    def forward(self, images: Tensor) -> Outputs:
        x = self.network(images.float() / 128 - 1)
        return Outputs(x, self.head(x))


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


ALL = Wanted(sample=1000, score=True)


@pytest.fixture(scope="module")
def sides(sets: tuple[Tensor, Tensor]) -> Sides:
    fake, real = (
        measure(Ours(), StreamImages(images.split(50), len(images)), ALL, seed=7, progress=False) for images in sets
    )
    return Sides(fake, real, seed=7)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_equal_to_torch_fidelity_from_images(sets: tuple[Tensor, Tensor], sides: Sides) -> None:
    name = "rcg-test-extractor"
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(name, Theirs)
    theirs = torch_fidelity.calculate_metrics(
        input1=Tensors(sets[0]), input2=Tensors(sets[1]), feature_extractor=name, cuda=False, cache=False,
        verbose=False, fid=True, isc=True, kid=True, prc=True, kid_subset_size=210, rng_seed=7,
    )  # fmt: skip
    ours = compute_metrics(DEFAULT_METRICS, "inception", sides)
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


def test_only_the_whole_inception_earns_the_names() -> None:
    assert [metric_name(m, "inception") for m in ("fid", "kid_std", "precision")] == ["fid", "kid_std", "precision"]
    assert [metric_name(m, "inception-768") for m in ("fid", "kid", "recall")] == ["fid-768", "kid-768", "recall-768"]
    assert metric_name("fid", "encoder") == "frechet-encoder"
    assert metric_name("fid_infinity", "encoder") == "frechet_infinity-encoder"
    assert metric_name("kid", "timm:resnet18") == "kid-timm:resnet18"
    assert [metric_name(m, "dinov2") for m in ("fid", "fid_infinity", "kid")] == ["fdd", "fdd_infinity", "kid-dinov2"]
    assert metric_name("fid", "representation") == "rep_fd"
    assert metric_name("sfid", "inception-768") == "sfid"  # the same features


def test_what_cannot_be_had_is_said() -> None:
    assert why_unavailable("fid", "x", {"reference"}) == "it compares with a reference; give --reference."
    assert "only their mu and sigma" in str(why_unavailable("kid", "x", {"reference features"}))
    assert "inception-768 has none" in str(why_unavailable("isc", "inception-768", {"logits", "reference"}))
    assert "--extractor clip" in str(why_unavailable("cmmd", "x", {"clip"}))
    assert why_unavailable("isc", "inception", {"reference"}) is None
    for metric in METRICS.values():
        assert set(metric.needs) <= REASONS.keys()


def test_a_stream_of_unknown_length_has_no_inception_score(sets: tuple[Tensor, Tensor]) -> None:
    fake = measure(Ours(), StreamImages(sets[0].split(50)), ALL, progress=False)
    scores = compute_metrics(["isc", "vendi"], "inception", Sides(fake))
    assert list(scores.metrics) == ["vendi"]
    assert "give the number of images" in scores.unavailable["isc"]
    with pytest.raises(UserError, match=r"None of the metrics can be computed\. isc: the Inception Score"):
        compute_metrics(["isc"], "inception", Sides(fake))


def test_few_samples(sides: Sides) -> None:
    assert sides.reference is not None
    fake, real = (ImageStats.of(np.asarray(s.features), "inception") for s in (sides.generated, sides.reference))
    few = Sides(ImageStats.of(np.asarray(fake.features)[:20]), real)
    scores = compute_metrics(["fid", "kid", "prc"], "inception", few)
    assert set(scores.metrics) == {"fid", "precision", "recall", "f_score"}
    assert "at least 50" in scores.unavailable["kid"]
    assert any("biased" in note and "--fid-infinity" in note for note in scores.notes)
    three = compute_metrics(["fid", "prc"], "inception", Sides(ImageStats.of(np.asarray(fake.features)[:3]), real))
    assert list(three.metrics) == ["fid"]


def test_a_figure_that_is_not_finite_is_none(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "vendi", Metric(("features",), lambda _: ({"vendi": float("nan")}, {})))
    scores = compute_metrics(["fid", "vendi"], "inception", sides)
    assert list(scores.metrics) == ["fid"]
    assert scores.unavailable == {"vendi": "it is not finite for these images."}


def test_parse_metrics() -> None:
    assert parse_metrics(["fid,isc", "KID", "fid"]) == ["fid", "isc", "kid"]
    assert parse_metrics(["prc, fid"]) == ["prc", "fid"]
    with pytest.raises(UserError, match="no metric 'fdi'"):
        parse_metrics(["fdi"])
    with pytest.raises(UserError, match="empty"):
        parse_metrics([","])


def test_only_what_a_metric_needs_is_kept() -> None:
    assert wanted_of(["fid"], 100) == Wanted()
    assert wanted_of(["fid", "isc"], 100) == Wanted(score=True)
    assert wanted_of(["sfid", "prc"], 100) == Wanted(sample=100, spatial=True)
    assert needs(["fid", "fld"]) == {"reference", "features", "train features", "held-out"}
