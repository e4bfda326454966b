"""Training an encoder from scratch with MoCo-v3: the stage that the training loop runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.pictures import make_grid, to_pil
from rcg.encoders.augment import augment, moco_v3_recipes
from rcg.encoders.moco import MoCoV3, effective_rank, spread
from rcg.encoders.ssl_encoder import SSLEncoder, standardize
from rcg.eval.probes import knn_accuracy
from rcg.training.stage import Batch, BatchDataset, Stage

EVAL_BATCH = 128


class MoCoStage(Stage):
    """Trains an `SSLEncoder` on images with two augmented views each; exports the base encoder with its head.

    Args:
        encoder: a new encoder with a projection head, `standardize` on; its image size is that of the dataset.
        dataset: batches with `images` uint8 [B, 3, S, S], and perhaps `labels`, which are used for logging only.
        eval_dataset: labelled images whose k-NN accuracy is logged; None takes a part of `dataset`.
        eval_samples: images that an evaluation looks at, at most: three quarters (from `dataset`) are the labelled
            bank, the rest are classified. Always the same ones.
        predictor_hidden_dim, temperature, momentum, freeze_patches: see `MoCoV3`.
        min_crop_scale: see `moco_v3_recipes`.
        source_size: side of the dataset's images where it is not the encoder's.

    Raises:
        UserError: settings out of range.
    """

    name: ClassVar[str] = "encoder"

    def __init__(
        self,
        encoder: SSLEncoder,
        dataset: BatchDataset,
        *,
        eval_dataset: BatchDataset | None = None,
        eval_samples: int = 2000,
        predictor_hidden_dim: int = 4096,
        temperature: float = 0.2,
        momentum: float = 0.99,
        freeze_patches: bool = True,
        min_crop_scale: float | None = None,
        source_size: int | None = None,
    ) -> None:
        if min_crop_scale is not None and not 0 < min_crop_scale <= 1:
            raise UserError(f"the least crop scale is {min_crop_scale}, but it must lie in (0, 1].")
        if min(len(dataset), eval_samples) < 8:
            raise UserError(
                f"{min(len(dataset), eval_samples)} images are too few; training and evaluation need 8 each."
            )
        self._settings: dict[str, Any] = {
            "predictor_hidden_dim": predictor_hidden_dim,
            "temperature": temperature,
            "momentum": momentum,
            "freeze_patches": freeze_patches,
        }
        self.moco = MoCoV3(encoder, **self._settings)
        self.objectives = {"moco": self.moco}
        self.dataset = dataset
        self.eval_dataset = eval_dataset
        self.eval_samples = eval_samples
        self.recipes = moco_v3_recipes(source_size or encoder.config.image_size, min_crop_scale)

    def to(self, device: torch.device) -> None:
        """On several GPUs BatchNorm counts the whole batch, as in the official code (torch has this for CUDA only)."""
        if device.type == "cuda" and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.moco)

    def prepare(self, batch: Batch) -> Batch:
        """Two augmented views, `view1` and `view2`, float [B, 3, S, S] in [0, 1]."""
        images = batch["images"].float() / 255
        return {"view1": augment(images, self.recipes[0]), "view2": augment(images, self.recipes[1])}

    def on_step_end(self, step: int, total_steps: int) -> None:
        """Move the momentum encoder."""
        self.moco.update_momentum_encoder(step / total_steps)

    # ------------------------------------------------------------------ looking at it

    def _encode(self, dataset: BatchDataset, indices: np.ndarray) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features [N, C], projections [N, D] and labels [N] of some images, on the CPU."""
        encoder = self.moco.base
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
        order = np.random.default_rng(0).permutation(len(self.dataset))
        count = min(self.eval_samples, len(order))
        bank = count * 3 // 4
        bank_features, bank_projections, bank_labels = self._encode(self.dataset, order[:bank])
        figures = {
            "feature_spread": float(spread(bank_features)),
            "projection_rank": float(effective_rank(bank_projections)),
        }
        if bank_labels is None:
            return figures
        if self.eval_dataset is None:
            features, projections, labels = self._encode(self.dataset, order[bank:count])
        else:
            chosen = np.random.default_rng(0).permutation(len(self.eval_dataset))[: self.eval_samples - bank]
            features, projections, labels = self._encode(self.eval_dataset, chosen)
        if labels is None:
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
        """Eight images (first row) with their two views (second and third)."""
        indices = np.random.default_rng(seed).permutation(len(self.dataset))[:8]
        images = self.dataset.batch(indices, np.zeros(len(indices), np.uint64))["images"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            views = self.prepare({"images": images})
        pictures = to_pil(torch.cat([images.float() / 255, views["view1"], views["view2"]]))
        return make_grid(pictures, columns=len(indices))

    def export(self, folder: Path) -> None:
        """Write the base encoder: backbone, projection head, preprocessing."""
        self.moco.base.save_pretrained(folder)

    def identity(self) -> dict[str, Any]:
        """Architecture, objective and augmentation; not the parts of a representation, which do not change the training."""
        config = {k: v for k, v in dict(self.moco.base.config).items() if not k.startswith("_") and k != "parts"}
        recipes = [dataclasses.asdict(recipe) for recipe in self.recipes]
        return {"encoder": config, "moco": self._settings, "augmentation": recipes}
