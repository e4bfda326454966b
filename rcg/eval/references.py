"""What is kept of a measured image set, and the `.npz` files of it, so that a reference is measured only once.

Reads our own files, pytorch-fid's and the batch files of guided-diffusion (ADM), `adm_in256_stats` among them; all name their
arrays mu and sigma, ADM also mu_s and sigma_s (of sFID).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rcg.core.arrays import load_member, readable
from rcg.core.errors import UserError
from rcg.core.files import atomic_file
from rcg.core.schema import problem
from rcg.eval.arrays import members
from rcg.eval.frechet import gaussian_stats
from rcg.eval.nearest import Neighbors

FORMAT = 2
INCEPTIONS = ("inception", "inception-768")


@dataclass(frozen=True)
class Origin:
    """How a set was made and measured; what a file does not say is None or empty.

    Attributes:
        source: where the images came from, in words.
        extractor: the extractor's name.
        weights_hash: the extractor's weights.
        precision: "fp32" or "bf16", what the extractor computed in.
        size: "32×32" (width first) and the like, as the extractor got them.
        resize: "none", or how they had been brought to that size.
        formats: how many files there were of each ending.
        classes: how many images there were of each class.
    """

    source: str = ""
    extractor: str | None = None
    weights_hash: str | None = None
    precision: str | None = None
    size: str | None = None
    resize: str | None = None
    formats: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, int] | None = None


@dataclass(frozen=True)
class ImageStats:
    """A measured image set.

    Attributes:
        mu: float64 [D].
        sigma: float64 [D, D], the unbiased covariance.
        n: how many images they are of; None if the file does not say.
        origin: how it was made.
        features: float32 [m, D], of all images or of a random sample, if they were kept.
        spatial: mu and sigma of the spatial features, for sFID, if they were measured.
        inception_score: mean and deviation over the splits, if there were logits.
        numbers: int64 [m], which images of the set the features are of, from 0; not kept in files.
        neighbors: the nearest images of the set to the rows that were asked about (`Wanted.near`); not kept in files.
    """

    mu: np.ndarray
    sigma: np.ndarray
    n: int | None
    origin: Origin = field(default_factory=Origin)
    features: np.ndarray | None = None
    spatial: tuple[np.ndarray, np.ndarray] | None = None
    inception_score: tuple[float, float] | None = None
    numbers: np.ndarray | None = None
    neighbors: Neighbors | None = None

    @staticmethod
    def of(features: np.ndarray, extractor: str | None = None, source: str = "") -> ImageStats:
        """Of vectors [N, D] that are at hand; they are kept.

        Raises:
            UserError: fewer than 2.
        """
        mu, sigma = gaussian_stats(features)
        origin = Origin(source=source, extractor=extractor)
        return ImageStats(mu, sigma, len(features), origin, features.astype(np.float32))

    def with_features(self, other: ImageStats) -> ImageStats:
        """The same, with the features of another set in the place of its own."""
        return replace(self, features=other.features, numbers=other.numbers)

    def check(self, path: Path, extractor: str, dim: int, weights_hash: str | None = None) -> None:
        """Refuse statistics that another extractor made.

        A file that does not name its extractor (pytorch-fid's, ADM's) is of the FID Inception.

        Raises:
            UserError: other extractor, other number of features, or other weights.
        """
        made_by = self.origin.extractor
        if made_by is not None and made_by != extractor:
            raise UserError(
                f"{path} holds statistics of the extractor {made_by}, but the images would be measured with "
                f"{extractor}; use --extractor {made_by}, or give the reference images."
            )
        if self.mu.shape[0] != dim:
            raise UserError(
                f"{path} holds statistics of {self.mu.shape[0]} features, but {extractor} has {dim}; "
                "use the extractor that made the file, or give the reference images."
            )
        if made_by is None and extractor not in INCEPTIONS:
            raise UserError(
                f"{path} does not say which extractor made it, so it is taken for the FID Inception's, not for "
                f"{extractor}'s; give the reference images."
            )
        made_with = self.origin.weights_hash
        if made_with is not None and weights_hash is not None and made_with != weights_hash:
            raise UserError(
                f"{path} was made by {extractor} with other weights ({made_with}, not {weights_hash}); "
                "give the weights that made it, or the reference images."
            )


def save_stats(path: Path, stats: ImageStats) -> None:
    """Write `stats` as a `.npz`, atomically. The keys mu, sigma, mu_s and sigma_s are those of pytorch-fid and ADM.

    `features` are those that KID, precision and recall and the like need of a reference (4·m·D bytes).

    Args:
        path: its name, ending in `.npz`.
        stats: what to write.
    """
    fields: dict[str, np.ndarray] = {
        "mu": stats.mu,
        "sigma": stats.sigma,
        "n": np.array(-1 if stats.n is None else stats.n, dtype=np.int64),
        "format": np.array(FORMAT),
        "origin": np.array(json.dumps(vars(stats.origin))),
    }
    if stats.features is not None:
        fields["features"] = stats.features
    if stats.spatial is not None:
        fields["mu_s"], fields["sigma_s"] = stats.spatial
    with atomic_file(path) as temporary, temporary.open("wb") as f:
        np.savez(f, **fields)  # type: ignore[arg-type]


def holds_stats(path: Path) -> bool:
    """Whether a `.npz` holds mu and sigma."""
    return {"mu.npy", "sigma.npy"} <= members(path)


_KEYS = {"mu", "sigma", "n", "origin", "extractor", "weights_hash", "features", "mu_s", "sigma_s"}


def load_stats(path: Path) -> ImageStats:
    """Read statistics from our own file, or from pytorch-fid's or guided-diffusion's; images in it are not read.

    Raises:
        UserError: no such file, not a `.npz`, no mu and sigma in it, or arrays of the wrong shape or not finite.
    """
    if not path.is_file():
        raise UserError(f"There is no statistics file {path}.")
    with readable(path, "give a .npz of statistics, or make it again"), zipfile.ZipFile(path) as archive:
        keys = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        if not {"mu", "sigma"} <= keys:
            raise UserError(
                f"{path} holds {', '.join(sorted(keys)[:5])} but not mu and sigma; give a statistics file, "
                "such as rcg-eval --make-stats writes, or a folder of images."
            )
        file = {key: load_member(archive, archive.getinfo(f"{key}.npy")) for key in keys & _KEYS}
        mu, sigma = np.asarray(file["mu"], np.float64), np.asarray(file["sigma"], np.float64)
        n = int(file["n"]) if "n" in keys else -1
        if "origin" in keys:
            origin = _origin(path, str(file["origin"]))
        else:  # another program's, or ours of format 1
            made_by, weights = (str(file[k]) or None if k in keys else None for k in ("extractor", "weights_hash"))
            origin = Origin(source=str(path), extractor=made_by, weights_hash=weights)
        features = np.asarray(file["features"], np.float32) if "features" in keys else None
        spatial = None
        if {"mu_s", "sigma_s"} <= keys:
            spatial = np.asarray(file["mu_s"], np.float64), np.asarray(file["sigma_s"], np.float64)
    for a, b in ((mu, sigma), spatial or (mu, sigma)):
        dim = a.shape[0] if a.ndim == 1 else -1
        if b.shape != (dim, dim) or not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise UserError(
                f"{path}: mu {list(a.shape)} and sigma {list(b.shape)} are not finite statistics; make it again."
            )
    if features is not None and (features.ndim != 2 or features.shape[1] != len(mu) or not 0 < len(features) <= n):
        raise UserError(f"{path}: its features {list(features.shape)} do not belong to its statistics; make it again.")
    return ImageStats(mu, sigma, n if n >= 0 else None, origin, features, spatial)


_TEXTS = ("extractor", "weights_hash", "precision", "size", "resize")


def _origin(path: Path, text: str) -> Origin:
    values: Any = json.loads(text)
    hints: dict[str, Any] = {"source": str, "formats": dict[str, int], "classes": dict[str, int] | None}
    hints |= dict.fromkeys(_TEXTS, str | None)
    if not isinstance(values, dict) or values.keys() != hints.keys():
        raise UserError(f"{path} does not say how it was made in the way of this version; make it again.")
    if found := next(filter(None, (problem(values[k], hint, k) for k, hint in hints.items())), None):
        raise UserError(f"{path} does not say how it was made ({found}); make it again.")
    return Origin(**values)
