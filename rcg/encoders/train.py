"""Training an encoder from scratch by any method: the stage that the training loop runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rcg.core.errors import UserError, first_line
from rcg.core.pictures import make_grid, to_pil
from rcg.core.together import processes
from rcg.data.image_source import divide
from rcg.data.images import ImageDataset
from rcg.encoders.methods import views_of
from rcg.encoders.moco import effective_rank, spread
from rcg.encoders.protocol import Objective
from rcg.encoders.ssl_encoder import SSLEncoder, standardize
from rcg.encoders.tokens import check_patches
from rcg.eval.probes import knn_accuracy
from rcg.training.stage import Batch, BatchDataset, Stage

EVAL_BATCH = 128


@torch.no_grad()
def check_depth(encoder: SSLEncoder) -> None:
    """Raise `UserError` unless the backbone can be run: a deep one shrinks a small image to nothing, which timm finds out late."""
    size, mode = int(encoder.config.image_size), encoder.training
    try:
        encoder.eval().features(torch.zeros(1, 3, size, size, device=encoder.device))
    except (RuntimeError, ValueError, AssertionError, ArithmeticError, LookupError) as e:
        raise UserError(
            f"{encoder.config.arch} cannot be run on images of {size} px ({first_line(e)}); set a larger --image-size, or choose "
            "an --arch, or --arch-kwargs, that shrink them less."
        ) from None
    finally:
        encoder.train(mode)


class StatisticsGuard:
    """Takes back what a batch that is not finite did to BatchNorm's running statistics, where it would stay for ever.

    (The training loop already leaves out an optimiser step whose gradient is not finite.) The statistics may not be
    touched between forward and backward pass, hence two calls.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._good: list[Tensor] = []

    def begin(self, module: nn.Module) -> None:
        """Before a forward pass: remember the statistics, if that is not done yet."""
        if not self._buffers:
            norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
            self._buffers = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
            self._good = [b.clone() for b in self._buffers]

    @torch.no_grad()
    def settle(self) -> None:
        """After an optimiser step: put back those that are not finite, remember the others."""
        for buffer, good in zip(self._buffers, self._good, strict=True):
            buffer.copy_(torch.where(buffer.isfinite().all(), buffer, good))
            good.copy_(buffer)


class EncoderStage(Stage):
    """Trains an `SSLEncoder` by any method; exports it with its head.

    Args:
        objective: the method, with the encoder.
        dataset: what it is trained on, see `rcg.encoders.protocol.Samples`.
        plain: single images, `images` uint8 [B, 3, S, S] and perhaps `labels`, which are used for logging only; None:
            `dataset` is of that kind.
        eval_dataset: labelled images whose k-NN accuracy is logged; None takes a part of `plain`.
        eval_samples: images that an evaluation looks at, at most: three quarters (from `plain`, or from `eval_dataset`
            where `plain` has no labels) are the labelled bank, the rest are classified; images of one group are on one
            side. Always the same ones.

    Raises:
        UserError: too few images, or an encoder whose patches do not cover them.
    """

    name: ClassVar[str] = "encoder"
    of_several = ("feature_spread",)

    def __init__(
        self,
        objective: Objective,
        dataset: BatchDataset,
        *,
        plain: BatchDataset | None = None,
        eval_dataset: BatchDataset | None = None,
        eval_samples: int = 2000,
    ) -> None:
        self.plain = dataset if plain is None else plain
        fewest = min(len(self.plain), eval_samples, 8 if eval_dataset is None else len(eval_dataset))
        if fewest < 8:
            raise UserError(f"{fewest} images are too few; training and evaluation need 8 each.")
        check_patches(objective.encoder)
        check_depth(objective.encoder)
        self.objective = objective
        self.objectives = {objective.name: cast(nn.Module, objective)}
        self.compares = objective.compares or self._normed()
        self.dataset = dataset
        self.eval_dataset = eval_dataset
        self.eval_samples = eval_samples
        self._guard = StatisticsGuard()
        self._sides = self._divided(self.plain)

    def to(self, device: torch.device) -> None:
        """On several GPUs BatchNorm counts the whole batch, as in the official code (torch has this for CUDA only).

        timm's conversion keeps the activations that are part of its own BatchNorm layers; torch's drops them.
        """
        if device.type == "cuda" and processes() > 1:
            convert_sync_batchnorm(self.objectives[self.objective.name])

    def least(self) -> int:
        """Two samples, where a head's BatchNorm sees one view of each."""
        normed = any(isinstance(m, nn.BatchNorm1d) for m in self.objectives[self.objective.name].modules())
        return 2 if normed and getattr(self.objective, "batch_norm", "view") == "view" else 1

    def parts_matter(self, world: int) -> str | None:
        """BatchNorm, where it does not count the whole batch."""
        on_gpu = any(p.device.type == "cuda" for p in self.objectives[self.objective.name].parameters())
        return "BatchNorm counts the part of each process by itself" if self._normed() and not on_gpu else None

    def _normed(self) -> bool:
        """Whether BatchNorm looks at several samples."""
        return any(isinstance(m, _BatchNorm) for m in self.objectives[self.objective.name].modules())

    def prepare(self, batch: Batch) -> Batch:
        """Augmented views, see `Objective.prepare`."""
        self._guard.begin(self.objectives[self.objective.name])
        return self.objective.prepare(batch)

    def on_step_end(self, step: int, total_steps: int) -> None:
        """Keep BatchNorm's statistics finite, and tell the method how far the training is."""
        self._guard.settle()
        self.objective.advance(step / total_steps)

    # ------------------------------------------------------------------ looking at it

    def _divided(self, dataset: BatchDataset) -> tuple[np.ndarray, np.ndarray]:
        """Images of the bank, and those that are classified."""
        order = np.random.default_rng(0).permutation(len(dataset))[: self.eval_samples]
        families = dataset.source.families() if isinstance(dataset, ImageDataset) else np.arange(len(dataset))
        return divide(order, families, len(order) * 3 // 4)

    def _encode(self, dataset: BatchDataset, indices: np.ndarray) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features [N, C], projections [N, D] and labels [N] of some images, on the CPU."""
        encoder = self.objective.encoder
        features, projections, labels = [], [], []
        for start in range(0, len(indices), EVAL_BATCH):
            chosen = indices[start : start + EVAL_BATCH]
            batch = dataset.batch(chosen, np.zeros(len(chosen), np.uint64))
            found = encoder.features(batch["images"].to(encoder.device).float() / 255)
            features.append(found.cpu())
            projections.append(encoder.project(found).cpu())
            if "labels" in batch:
                labels.append(batch["labels"])
        return torch.cat(features), torch.cat(projections), torch.cat(labels) if labels else None

    @torch.no_grad()
    def evaluate(self, seed: int) -> dict[str, float]:
        """Signs of collapse and, with labels, k-NN accuracies in [0, 1].

        `feature_spread` is 1 when the features' directions are spread evenly, 0 when they are all the same;
        `projection_rank` is the number of dimensions that the projections use.

        `knn_features` is of the pooled features, `knn_representation` of the standardised representation. The images
        are drawn once for all, not by `seed`, so that the figures of a run can be compared.
        """
        bank, rest = self._sides
        bank_features, bank_projections, bank_labels = self._encode(self.plain, bank)
        figures = {
            "feature_spread": float(spread(bank_features)),
            "projection_rank": float(effective_rank(bank_projections)),
        }
        if bank_labels is None and self.eval_dataset is None:
            return figures
        if self.eval_dataset is None:
            features, projections, labels = self._encode(self.plain, rest)
        elif bank_labels is None:  # captions, say: both parts come from the labelled images
            bank, rest = self._divided(self.eval_dataset)
            bank_features, bank_projections, bank_labels = self._encode(self.eval_dataset, bank)
            features, projections, labels = self._encode(self.eval_dataset, rest)
        else:
            chosen = np.random.default_rng(0).permutation(len(self.eval_dataset))[: self.eval_samples - len(bank)]
            features, projections, labels = self._encode(self.eval_dataset, chosen)
        if labels is None or bank_labels is None:
            return figures
        figures["knn_features"] = knn_accuracy(bank_features, bank_labels, features, labels)
        try:
            bank_representations, representations = standardize(bank_projections), standardize(projections)
        except UserError:
            return figures  # collapsed: there is no representation, and the figures above say so
        figures["knn_representation"] = knn_accuracy(bank_representations, bank_labels, representations, labels)
        return figures

    @torch.no_grad()
    def preview(self, seed: int) -> Image.Image:
        """Eight samples (first row) with their views (the rows below)."""
        indices = np.random.default_rng(seed).permutation(len(self.dataset))[:8]
        batch = self.dataset.batch(indices, np.zeros(len(indices), np.uint64))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = self.prepare(batch)
        images = batch["images"] if batch["images"].ndim == 4 else batch["images"][:, 0]
        pictures = to_pil(torch.cat([images.float() / 255, *views_of(made)]))
        return make_grid(pictures, columns=len(indices))

    def export(self, folder: Path) -> None:
        """Write the encoder: backbone, projection head, preprocessing."""
        self.objective.export(folder)

    def identity(self) -> dict[str, Any]:
        """Architecture, objective and augmentation; not the parts of a representation, which do not change the training."""
        config = dict(self.objective.encoder.config)
        config = {k: v for k, v in config.items() if not k.startswith("_") and k != "parts"}
        return {"encoder": config, **self.objective.identity()}
