"""Training a representation model of any method, from cached representations or from images through a frozen encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.files import model_hash
from rcg.core.rng import derive_seed, sample_seeds
from rcg.data.cache import Cache, is_cache
from rcg.data.clusters import cluster_counts
from rcg.data.images import ImageDataset, to_unit
from rcg.data.sources import open_source
from rcg.eval.frechet import frechet_distance
from rcg.rdm.draw import draw_many
from rcg.rdm.protocol import Objective
from rcg.rdm.statistics import is_standardized
from rcg.training.stage import Batch, BatchDataset, Frozen, Stage
from rcg.training.subset import Subset, hold_out

RDMCondition = Literal["none", "class", "cluster"]
EVAL_SAMPLES = 5000
PREVIEW_POINTS = 1000
READ_AT_ONCE = 256
LOOKED_AT = 256
"""Cached representations that tell whether all are standardised."""


def hold_out_share(dataset: BatchDataset, share: float, most: int = 2 * EVAL_SAMPLES) -> tuple[Subset, Subset]:
    """Split a data set at random, but always alike, into a part to train on and one (at most `most`) to judge by.

    Raises:
        UserError: a share that leaves either part with fewer than 4 samples.
    """
    size = len(dataset)
    held = min(most, round(size * share))
    if not 0 < share < 1 or held < 4 or size - held < 4:
        raise UserError(
            f"holding out a share of {share} of {size} samples leaves too few; set --held-out-share 0 or add data."
        )
    kept, chosen = hold_out(size, held, most=1.0)
    return Subset(dataset, kept), Subset(dataset, chosen)


class RDMData(NamedTuple):
    """What a representation model is trained on, as `RDMStage` takes it."""

    dataset: BatchDataset
    heldout: BatchDataset | None
    encoder: nn.Module | None
    """That is to run on every step; None where its work is in a cache."""
    representation_dim: int
    num_classes: int
    """0 without classes."""
    standardized: bool
    """Whether each representation has mean 0 and standard deviation 1 over its own entries."""
    label_counts: list[int] | None = None
    """How often each cluster occurs; None for classes, which are drawn alike."""


class ByCluster:
    """A cache's representations with its clusters in the place of labels: a `BatchDataset`."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.label_counts = cluster_counts(cache)
        self.fingerprint = cache.fingerprint

    def __len__(self) -> int:
        return len(self.cache)

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, Tensor]:
        """See `BatchDataset.batch`."""
        batch = self.cache.batch(indices, seeds)
        return {**batch, "labels": batch["clusters"]}


def open_data(
    data: str | Path,
    encoder: Any = None,
    *,
    size: int | None = None,
    val_data: str | Path | None = None,
    held_out_share: float = 0.05,
    condition: RDMCondition = "none",
) -> RDMData:
    """Open the data of a run, checked against the encoder and each other.

    Args:
        data: a cache with representations, or a source of images, which needs an encoder.
        encoder: the frozen `SSLEncoder`, or None.
        size: with images: side of the random crops that the encoder sees; None is the encoder's own size.
        val_data: a cache or source to judge by.
        held_out_share: without `val_data`: share of `data` that is judged by; 0 judges by the training data.
        condition: whether the classes of the data are to be used, or the clusters of a cache.

    Raises:
        UserError: images without an encoder, a cache of another encoder, sets that do not go together, no classes.
    """
    fields = ["representations"] + ["clusters"] * (condition == "cluster")
    whole = _open_one(data, encoder, size, fields)
    if condition == "class" and whole.labels is None:
        raise UserError(f"{data} has no class labels; give labelled data, or use --condition none or cluster.")
    dataset: BatchDataset = whole
    counts = None
    if condition == "cluster":
        if not isinstance(whole, Cache):
            raise UserError(
                f"{data} is not a cache, and --condition cluster needs one: make it with rcg-cache --encoder … --clusters …"
            )
        if val_data is not None:
            raise UserError(
                "--val-data has clusters of its own; with --condition cluster use --held-out-share instead."
            )
        dataset = by_cluster = ByCluster(whole)
        counts = by_cluster.label_counts
    heldout: BatchDataset | None = None
    if val_data is not None:
        heldout = _open_one(val_data, encoder, size, fields)
        if isinstance(whole, Cache) != isinstance(heldout, Cache):
            raise UserError(
                "--data and --val-data must both be caches or both be images; make a cache of the other with rcg-cache."
            )
        hashes = {
            d.manifest["fields"]["representations"]["model_hash"] for d in (whole, heldout) if isinstance(d, Cache)
        }
        if len(hashes) > 1:
            raise UserError(
                f"the representations in {val_data} were computed by another encoder than those in {data}; "
                "make its cache anew with the same encoder."
            )
        if condition == "class" and heldout.class_names != whole.class_names:
            raise UserError(f"{val_data} does not have the classes of {data}; give one that has.")
    elif held_out_share:
        dataset, heldout = hold_out_share(dataset, held_out_share)
    if isinstance(whole, Cache):
        encoder, dim = None, whole.fields["representations"][0]
        first = np.arange(min(len(whole), LOOKED_AT))
        standardized = is_standardized(whole.batch(first, first.astype(np.uint64))["representations"])
    else:
        dim, standardized = encoder.representation_dim, bool(encoder.config.standardize)
    classes = len(counts) if counts is not None else whole.num_classes if condition == "class" else 0
    return RDMData(dataset, heldout, encoder, dim, classes, standardized, counts)


def _open_one(spec: str | Path, encoder: Any, size: int | None, fields: list[str]) -> Cache | ImageDataset:
    if is_cache(spec):
        cache = Cache(spec, fields)
        cache.require("representations", encoder)
        return cache
    if encoder is None:
        if not Path(spec).is_dir():
            open_source(spec)  # says what is wrong with it, unless it is a built-in set
        raise UserError(
            f"{spec} is not a cache, and images need an encoder: add --encoder DIR, or compute a cache first with rcg-cache."
        )
    return ImageDataset(open_source(spec), size or int(encoder.config.image_size), "crop_flip")


class RDMStage(Stage):
    """Training of a representation model, by any method.

    Args:
        objective: the model and how it is trained; its generator draws what is judged.
        dataset: gives "representations" (a cache), or "images" (uint8) when there is an `encoder`.
        heldout: like `dataset`, samples not trained on, to judge by; the training data itself if None.
        encoder: frozen, images [B, 3, S, S] in [0, 1] → [B, D]; only with images.
        eval_samples: representations drawn for the Fréchet distance (fewer if there are fewer to compare with).
    """

    name: ClassVar[str] = "rdm"

    def __init__(
        self,
        objective: Objective,
        dataset: BatchDataset,
        *,
        heldout: BatchDataset | None = None,
        encoder: nn.Module | None = None,
        eval_samples: int = EVAL_SAMPLES,
    ) -> None:
        self.objective = objective
        self.rdm = objective.rdm
        self.dataset = dataset
        self.heldout = dataset if heldout is None else heldout
        self.encoder = None if encoder is None else Frozen(encoder)
        self.objectives = {"rdm": cast(nn.Module, objective)}
        self.eval_samples = eval_samples
        self._real: tuple[Tensor, Tensor | None] | None = None
        self._sampled_norms: Tensor | None = None
        if len(self.heldout) < 4:
            raise UserError(
                f"{len(self.heldout)} samples are too few to judge a representation model by; give at least 4."
            )

    def param_groups(self, objective: str, weight_decay: float) -> list[dict[str, Any]]:
        """One group: in the reference, weight decay hits every parameter."""
        return [{"params": list(self.objectives[objective].parameters()), "weight_decay": weight_decay}]

    def ema_modules(self) -> dict[str, nn.Module]:
        """The whole model, its class embedding included."""
        return {"rdm": self.rdm}

    def to(self, device: torch.device) -> None:
        """Move the encoder."""
        if self.encoder is not None:
            self.encoder.module.to(device)

    def fit(self, device: torch.device) -> None:
        """Let the objective see the training data."""
        if self.objective.fit_samples:
            self.objective.fit(
                self._samples(self.dataset, self.objective.fit_samples, device)["representations"].float()
            )

    def prepare(self, batch: Batch) -> Batch:
        """Encode images, if images are what the data set gives."""
        if self.encoder is None:
            return batch
        images = to_unit(batch["images"])
        rest = {k: v for k, v in batch.items() if k != "images"}
        return {"representations": self.encoder.module(images), **rest}

    def identity(self) -> dict[str, Any]:
        """Model, objective and encoder: what a resumed run must find unchanged."""
        config = {k: v for k, v in self.rdm.config.items() if not k.startswith("_")}
        identity: dict[str, Any] = {"rdm": config, **self.objective.identity()}
        if self.encoder is not None:
            identity["encoder"] = model_hash(self.encoder.module)
        return identity

    # ------------------------------------------------------------------ judging

    def _samples(self, part: BatchDataset, most: int, device: torch.device) -> Batch:
        """Some samples of a data set, prepared: a random choice, but always the same."""
        chosen = np.random.default_rng(derive_seed(len(part), 6)).permutation(len(part))[:most].astype(np.int64)
        seeds = sample_seeds(0, np.zeros_like(chosen), chosen)
        pieces: list[Batch] = []
        with torch.no_grad():
            for i in range(0, len(chosen), READ_AT_ONCE):
                batch = part.batch(chosen[i : i + READ_AT_ONCE], seeds[i : i + READ_AT_ONCE])
                pieces.append(self.prepare({k: v.to(device) for k, v in batch.items()}))
        return {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}

    def _real_samples(self) -> tuple[Tensor, Tensor | None]:
        """Real representations [2n, D] and their labels from the held-out data, read once."""
        if self._real is None:
            n = min(self.eval_samples, len(self.heldout) // 2)
            real = self._samples(self.heldout, 2 * n, self.rdm.device)
            self._real = real["representations"].float(), real["labels"] if self.rdm.config.num_classes else None
        return self._real

    @torch.no_grad()
    def evaluate(self, seed: int) -> dict[str, float]:
        """Fréchet distance of sampled to real representations beside its floor, and the objective's own figures.

        `rep_fd` compares n samples with one half of the held-out representations, `rep_fd_floor` the other half with
        the same one: at equal n they can be set side by side, and a perfect model reaches the floor. Where a method codes
        representations, `rep_fd_coded` is that of the other half through the codes and back: what its model can reach.
        """
        real, labels = self._real_samples()
        n = len(real) // 2
        reference = real[:n].cpu().numpy()
        sampled = draw_many(self.objective.generator, n, seed, None if labels is None else labels[n:])
        self._sampled_norms = sampled[:PREVIEW_POINTS].norm(dim=1)
        figures = {
            "rep_fd": frechet_distance(sampled.cpu().numpy(), reference),
            "rep_fd_floor": frechet_distance(real[n:].cpu().numpy(), reference),
        }
        if (coded := self.objective.reconstruct(real[n:])) is not None:
            figures["rep_fd_coded"] = frechet_distance(coded.cpu().numpy(), reference)
        return figures | self.objective.evaluate(real, labels)

    @torch.no_grad()
    def preview(self, seed: int) -> Image.Image | None:
        """Real (grey) and sampled (red) representations on the first two principal axes of the real ones."""
        real, labels = self._real_samples()
        n = min(len(real), PREVIEW_POINTS)
        sampled = draw_many(self.objective.generator, n, seed, None if labels is None else labels[:n]).double().cpu()
        real = real.double().cpu()
        mean = real.mean(dim=0)
        axes = torch.linalg.svd(real - mean, full_matrices=False).Vh[:2]
        return scatter([((real[:n] - mean) @ axes.T, (120, 120, 120)), ((sampled - mean) @ axes.T, (220, 30, 30))])

    @torch.no_grad()
    def distributions(self, seed: int) -> dict[str, Tensor]:
        """Norms of real representations, and of those that `evaluate` has just drawn, float32 [n] each."""
        if self._sampled_norms is None:
            self.evaluate(seed)
        sampled, self._sampled_norms = self._sampled_norms, None
        assert sampled is not None
        real, _ = self._real_samples()
        return {"representation_norm/real": real[:PREVIEW_POINTS].norm(dim=1), "representation_norm/sampled": sampled}

    def export(self, folder: Path) -> None:
        """Write config.json, safetensors and the scheduler_config.json of the few-step default."""
        self.rdm.save_pretrained(folder)
        self.objective.generator.scheduler.save_pretrained(folder)


def scatter(groups: list[tuple[Tensor, tuple[int, int, int]]], size: int = 384) -> Image.Image:
    """A scatter plot of point sets ([N, 1 or 2], RGB colour) on white, scaled to the first set."""
    first = groups[0][0]
    centre, reach = first.mean(dim=0), 1.25 * (first - first.mean(dim=0)).abs().max().clamp(min=1e-9)
    picture = Image.new("RGB", (size, size), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for points, colour in groups:
        places = ((points - centre) / reach * 0.5 + 0.5) * size
        for place in places:
            x, y = (float(place[0]), float(place[-1]))
            draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=colour)
    return picture
