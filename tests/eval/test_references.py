"""Statistics files: ours, other programs', and wrong ones."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.eval.references import ImageStats, Origin, holds_stats, load_stats, save_stats

X = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
ORIGIN = Origin("a folder", "inception-768", "abc", "fp32", "32×32", "none", {"png": 30}, {"a": 10, "b": 20})


def stats(extractor: str | None = "inception-768") -> ImageStats:
    return replace(ImageStats.of(X), origin=replace(ORIGIN, extractor=extractor))


def test_statistics_and_round_trip(tmp_path: Path) -> None:
    made = replace(stats(), spatial=(np.ones(3), np.eye(3)))
    centred = X.astype(np.float64) - X.astype(np.float64).mean(0)
    assert made.sigma == pytest.approx(centred.T @ centred / 29)
    assert made.mu.dtype == made.sigma.dtype == np.float64
    for kept in (made, replace(made, features=None, spatial=None), replace(made, features=X[:7])):
        save_stats(tmp_path / "s.npz", kept)
        found = load_stats(tmp_path / "s.npz")
        assert (found.mu == made.mu).all()
        assert (found.sigma == made.sigma).all()
        assert (found.n, found.origin) == (30, made.origin)
        assert (found.features is None) == (kept.features is None)
        assert found.features is None or (found.features == kept.features).all()
        assert (found.spatial is None) == (kept.spatial is None)
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]
    assert holds_stats(tmp_path / "s.npz")


def test_files_of_other_programs(tmp_path: Path) -> None:
    made = ImageStats.of(X)
    np.savez(tmp_path / "pytorch_fid.npz", mu=made.mu, sigma=made.sigma)
    adm = {"mu": made.mu, "sigma": made.sigma, "mu_s": np.ones(3), "sigma_s": np.eye(3)}
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8), **adm)
    for file in ("pytorch_fid.npz", "adm.npz"):
        found = load_stats(tmp_path / file)
        assert (found.mu == made.mu).all()
        assert found.n is None
        assert found.origin == Origin(source=str(tmp_path / file))
        assert (found.spatial is not None) == (file == "adm.npz")
        found.check(tmp_path / file, "inception", 6, "any")
        with pytest.raises(UserError, match="does not say which extractor"):
            found.check(tmp_path / file, "encoder", 6, "any")


def test_our_own_first_format(tmp_path: Path) -> None:
    made = ImageStats.of(X)
    texts = {"extractor": np.array("encoder"), "weights_hash": np.array("abc"), "source": np.array("a folder")}
    np.savez(tmp_path / "s.npz", mu=made.mu, sigma=made.sigma, n=np.array(30), features=X, format=np.array(1), **texts)
    found = load_stats(tmp_path / "s.npz")
    assert (found.origin.extractor, found.origin.weights_hash, found.n) == ("encoder", "abc", 30)
    with pytest.raises(UserError, match="of the extractor encoder"):
        found.check(tmp_path / "s.npz", "inception", 6)


def test_another_extractor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    stats().check(path, "inception-768", 6, "abc")
    with pytest.raises(UserError, match=r"of the extractor inception-768, but .* with encoder; use --extractor"):
        stats().check(path, "encoder", 6, "abc")
    with pytest.raises(UserError, match="6 features, but inception-768 has 768"):
        stats().check(path, "inception-768", 768, "abc")
    with pytest.raises(UserError, match="other weights"):
        stats().check(path, "inception-768", 6, "def")


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    assert not holds_stats(path)
    with pytest.raises(UserError, match="no statistics file"):
        load_stats(path)
    path.write_bytes(b"PK nonsense")
    assert not holds_stats(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_stats(path)
    np.savez(path, arr_0=X)
    with pytest.raises(UserError, match="not mu and sigma"):
        load_stats(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(UserError, match="not finite statistics"):
        load_stats(path)
    np.savez(path, mu=np.full(3, np.nan), sigma=np.eye(3))
    with pytest.raises(UserError, match="not finite statistics"):
        load_stats(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(2), sigma_s=np.eye(3))
    with pytest.raises(UserError, match="not finite statistics"):
        load_stats(path)
    np.savez(path, mu=np.array([None, None]), sigma=np.eye(2))  # a pickle is not opened
    with pytest.raises(UserError, match="cannot be read"):
        load_stats(path)
    save_stats(path, stats())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        load_stats(path)
    with pytest.raises(UserError, match="at least 2"):
        ImageStats.of(X[:1])


@pytest.mark.parametrize(
    "change", [{"n": np.array(5)}, {"features": X[:, :4]}, {"features": X[:0]}, {"features": np.zeros(3, np.float32)}]
)
def test_features_that_do_not_belong(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    save_stats(tmp_path / "s.npz", stats())
    with np.load(tmp_path / "s.npz") as file:
        np.savez(tmp_path / "t.npz", **(dict(file) | change))
    with pytest.raises(UserError, match="do not belong"):
        load_stats(tmp_path / "t.npz")


@pytest.mark.parametrize("change", [{"size": 3}, {"formats": {"png": "many"}}, {"extra": 1}, None])
def test_origins_that_are_none(tmp_path: Path, change: dict[str, object] | None) -> None:
    save_stats(tmp_path / "s.npz", stats())
    with np.load(tmp_path / "s.npz") as file:
        held = dict(file)
    origin = json.loads(str(held["origin"]))
    held["origin"] = np.array(json.dumps([] if change is None else origin | change))
    np.savez(tmp_path / "t.npz", **held)
    with pytest.raises(UserError, match="does not say how it was made"):
        load_stats(tmp_path / "t.npz")


def test_images_beside_statistics_are_not_read(tmp_path: Path) -> None:
    """ADM's reference batches hold gigabytes of them."""
    made = ImageStats.of(X)
    np.savez(tmp_path / "adm.npz", mu=made.mu, sigma=made.sigma, arr_0=np.zeros((9, 512, 512, 3), np.uint8))
    tracemalloc.start()
    load_stats(tmp_path / "adm.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
