"""Statistics files: ours, other programs', and wrong ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.eval.references import ReferenceStats, load_stats, save_stats

X = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)


def test_statistics_and_round_trip(tmp_path: Path) -> None:
    stats = ReferenceStats.of(X, "inception-768", "abc", source="a folder", keep_features=True)
    centred = X.astype(np.float64) - X.astype(np.float64).mean(0)
    assert stats.sigma == pytest.approx(centred.T @ centred / 29)
    assert stats.mu.dtype == stats.sigma.dtype == np.float64
    for keep in (False, True):
        save_stats(tmp_path / "s.npz", stats, with_features=keep)
        found = load_stats(tmp_path / "s.npz")
        assert (found.mu == stats.mu).all()
        assert (found.sigma == stats.sigma).all()
        assert (found.n, found.extractor, found.weights_hash, found.source) == (30, "inception-768", "abc", "a folder")
        assert (found.features is not None) == keep
        assert found.features is None or (found.features == X).all()
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_files_of_other_programs(tmp_path: Path) -> None:
    stats = ReferenceStats.of(X, "inception")
    np.savez(tmp_path / "pytorch_fid.npz", mu=stats.mu, sigma=stats.sigma)
    adm = {"mu": stats.mu, "sigma": stats.sigma, "mu_s": stats.mu, "sigma_s": stats.sigma}
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8), **adm)
    for file in ("pytorch_fid.npz", "adm.npz"):
        found = load_stats(tmp_path / file)
        assert (found.mu == stats.mu).all()
        assert found.n is None
        assert found.extractor is None
        found.check(tmp_path / file, "inception", 6, "any")
        with pytest.raises(UserError, match="does not say which extractor"):
            found.check(tmp_path / file, "encoder", 6, "any")


def test_another_extractor_is_refused(tmp_path: Path) -> None:
    stats = ReferenceStats.of(X, "inception-768", "abc")
    path = tmp_path / "s.npz"
    stats.check(path, "inception-768", 6, "abc")
    with pytest.raises(UserError, match=r"of the extractor inception-768, but .* with encoder; use --extractor"):
        stats.check(path, "encoder", 6, "abc")
    with pytest.raises(UserError, match="6 features, but inception-768 has 768"):
        stats.check(path, "inception-768", 768, "abc")
    with pytest.raises(UserError, match="other weights"):
        stats.check(path, "inception-768", 6, "def")


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    with pytest.raises(UserError, match="no statistics file"):
        load_stats(path)
    path.write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match="not a readable"):
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
    np.savez(path, mu=np.array([None, None]), sigma=np.eye(2))  # a pickle is not opened
    with pytest.raises(UserError, match="not a readable"):
        load_stats(path)
    save_stats(path, ReferenceStats.of(X, "x", keep_features=True), with_features=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable"):
        load_stats(path)
    with pytest.raises(UserError, match="at least 2"):
        ReferenceStats.of(X[:1], "x")
