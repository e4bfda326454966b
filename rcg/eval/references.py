"""Reference statistics: mean and covariance of an image set's features in a `.npz`, so that it is read only once.

Reads our own files, pytorch-fid's and the batch files of guided-diffusion (ADM); all name their arrays mu and sigma.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rcg.core.errors import UserError
from rcg.core.files import atomic_file
from rcg.eval.frechet import gaussian_stats

FORMAT = 1


@dataclass(frozen=True)
class ReferenceStats:
    """Statistics of a set of features.

    Attributes:
        mu: float64 [D].
        sigma: float64 [D, D], the unbiased covariance.
        n: how many images they are of; None if the file does not say.
        extractor: the extractor's name; None if the file does not say.
        weights_hash: the extractor's weights; None if the file does not say.
        source: where the images came from, in words.
        features: float32 [n, D], if they were kept.
    """

    mu: np.ndarray
    sigma: np.ndarray
    n: int | None
    extractor: str | None
    weights_hash: str | None = None
    source: str = ""
    features: np.ndarray | None = None

    @staticmethod
    def of(
        features: np.ndarray,
        extractor: str,
        weights_hash: str | None = None,
        source: str = "",
        keep_features: bool = False,
    ) -> ReferenceStats:
        """Statistics of `features` [N, D], in float64.

        Raises:
            UserError: fewer than 2 samples have no covariance.
        """
        if len(features) < 2:
            raise UserError(f"Statistics need at least 2 images; there is {len(features)}.")
        mu, sigma = gaussian_stats(features)
        return ReferenceStats(
            mu=mu,
            sigma=sigma,
            n=len(features),
            extractor=extractor,
            weights_hash=weights_hash,
            source=source,
            features=features.astype(np.float32) if keep_features else None,
        )

    def check(self, path: Path, extractor: str, dim: int, weights_hash: str | None = None) -> None:
        """Refuse statistics that another extractor made.

        A file that does not name its extractor (pytorch-fid's, ADM's) is of the FID Inception.

        Raises:
            UserError: other extractor, other number of features, or other weights.
        """
        if self.extractor is not None and self.extractor != extractor:
            raise UserError(
                f"{path} holds statistics of the extractor {self.extractor}, but the images would be measured with "
                f"{extractor}; use --extractor {self.extractor}, or give the reference images."
            )
        if self.mu.shape[0] != dim:
            raise UserError(
                f"{path} holds statistics of {self.mu.shape[0]} features, but {extractor} has {dim}; "
                "use the extractor that made the file, or give the reference images."
            )
        if self.extractor is None and extractor not in ("inception", "inception-768"):
            raise UserError(
                f"{path} does not say which extractor made it, so it can only be used with inception or inception-768, "
                f"not with {extractor}; give the reference images."
            )
        if None not in (self.weights_hash, weights_hash) and self.weights_hash != weights_hash:
            raise UserError(
                f"{path} was made by {extractor} with other weights ({self.weights_hash}, not {weights_hash}); "
                "give the weights that made it, or the reference images."
            )


def save_stats(path: Path, stats: ReferenceStats, with_features: bool = False) -> None:
    """Write `stats` as a `.npz`, atomically. The keys mu and sigma are those of pytorch-fid.

    Args:
        path: its name, ending in `.npz`.
        stats: what to write.
        with_features: the features too (4·n·D bytes), which KID and precision/recall need of a reference.
    """
    fields: dict[str, np.ndarray] = {
        "mu": stats.mu,
        "sigma": stats.sigma,
        "n": np.array(-1 if stats.n is None else stats.n, dtype=np.int64),
        "extractor": np.array(stats.extractor or ""),
        "weights_hash": np.array(stats.weights_hash or ""),
        "source": np.array(stats.source),
        "format": np.array(FORMAT),
    }
    if with_features:
        if stats.features is None:
            raise ValueError("these statistics were made without keep_features")
        fields["features"] = stats.features
    with atomic_file(path) as temporary, temporary.open("wb") as f:
        np.savez(f, **fields)  # type: ignore[arg-type]


def load_stats(path: Path) -> ReferenceStats:
    """Read statistics from our own file, or from pytorch-fid's or guided-diffusion's.

    Raises:
        UserError: no such file, not a `.npz`, no mu and sigma in it, or arrays of the wrong shape or not finite.
    """
    if not path.is_file():
        raise UserError(f"There is no statistics file {path}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = set(file.files)
            if not {"mu", "sigma"} <= keys:
                raise UserError(
                    f"{path} holds {', '.join(sorted(keys)[:5])} but not mu and sigma; give a statistics file, "
                    "such as --save-reference-stats writes, or a folder of images."
                )
            mu, sigma = np.asarray(file["mu"], np.float64), np.asarray(file["sigma"], np.float64)
            n = int(file["n"]) if "n" in keys else -1
            text = {k: str(file[k]) if k in keys else "" for k in ("extractor", "weights_hash", "source")}
            features = np.asarray(file["features"], np.float32) if "features" in keys else None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"{path} is not a readable .npz of statistics ({type(e).__name__}); make it again.") from None
    dim = mu.shape[0] if mu.ndim == 1 else -1
    if sigma.shape != (dim, dim) or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(
            f"{path}: mu {list(mu.shape)} and sigma {list(sigma.shape)} are not finite statistics; make it again."
        )
    if features is not None and features.shape != (n, dim):
        raise UserError(f"{path}: its features {list(features.shape)} do not belong to its statistics; make it again.")
    return ReferenceStats(
        mu=mu,
        sigma=sigma,
        n=n if n >= 0 else None,
        extractor=text["extractor"] or None,
        weights_hash=text["weights_hash"] or None,
        source=text["source"],
        features=features,
    )
