"""The stage that trains MAGE: its data, its figures and pictures, what it exports. The loss is in `mage_objective`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.files import model_hash
from rcg.core.pictures import make_grid, to_pil
from rcg.core.rng import sample_generators, sample_seeds
from rcg.data.images import to_unit
from rcg.image_gen.mage.objective import MageObjective, condition_of
from rcg.image_gen.mage.sampling import generate_tokens
from rcg.image_gen.mage.scheduler import MaskGITScheduler
from rcg.training.stage import Batch, BatchDataset, Frozen, Stage
from rcg.training.subset import Subset, hold_out

__all__ = ["GeneratorStage", "MageObjective", "check_grid"]

PREVIEW_COLUMNS = 8
PREVIEW_ROWS = 3
EVAL_BATCH = 32


class Tokenizer(Protocol):
    """What training asks of a tokenizer module."""

    def encode(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] → int64 [B, h, w]."""
        ...

    def decode(self, ids: Tensor) -> Tensor:
        """int64 [B, h, w] → float [B, 3, H, W] in [0, 1]."""
        ...


class GeneratorStage(Stage):
    """Trains a `MageTransformer` on cached tokens, or on images through a frozen tokenizer and encoder.

    Args:
        objective: the model and how it is trained.
        dataset: batches with `tokens` (and `representations` or `labels` as the model's condition needs), e.g. a
            `Cache`; or with `images` uint8 [B, 3, S, S], e.g. an `ImageDataset`, from which the frozen models compute
            them.
        scheduler: exported with the model as its default sampler, and used for previews.
        tokenizer: a frozen module with `encode` and `decode`; needed for images, and for previews.
        encoder: a frozen module, images → [B, D]; needed for images with condition "representation".
        held_out: samples kept out of training for `evaluate`, chosen at random but always the same; at most a tenth
            of the data.
        ema: keep, evaluate and export the moving average of the weights. (The paper has none; short runs gain by it.)

    Raises:
        UserError: the data lacks what the model needs, or has it in another shape.
    """

    name = "generator"

    def __init__(
        self,
        objective: MageObjective,
        dataset: BatchDataset,
        scheduler: MaskGITScheduler,
        *,
        tokenizer: nn.Module | None = None,
        encoder: nn.Module | None = None,
        held_out: int = 256,
        ema: bool = False,
    ) -> None:
        self.objectives = {"generator": objective}
        self.objective = objective
        self.model = objective.model
        self.scheduler = scheduler
        self.tokenizer = None if tokenizer is None else Frozen(tokenizer)
        self.encoder = None if encoder is None else Frozen(encoder)
        self.ema = ema
        if held_out < 0:
            raise UserError(f"held_out is {held_out}, but it may not be negative.")
        kept, chosen = hold_out(len(dataset), held_out)
        self.dataset = Subset(dataset, kept)
        self.held_out = Subset(dataset, chosen)
        self._check(dataset)

    def _check(self, dataset: BatchDataset) -> None:
        """Refuse data that does not fit the model, by its first sample and its labels."""
        config = self.model.config
        batch = dataset.batch(np.zeros(1, np.int64), np.zeros(1, np.uint64))
        if "tokens" not in batch and ("images" not in batch or self.tokenizer is None):
            raise UserError("the data has no tokens and there is no tokenizer to compute them; give a tokenizer.")
        if "tokens" in batch:
            check_grid(tuple(batch["tokens"].shape[1:]), config.grid_size)
        if config.condition == "representation":
            if "representations" not in batch and ("images" not in batch or self.encoder is None):
                raise UserError(
                    "the data has no representations and there is no encoder to compute them; give an encoder."
                )
            if "representations" in batch and batch["representations"].shape[1] != config.representation_dim:
                raise UserError(
                    f"the data's representations have {batch['representations'].shape[1]} numbers, but the model takes "
                    f"{config.representation_dim}; build the model for this data."
                )
        if config.condition == "class":
            if "labels" not in batch:
                raise UserError(
                    "condition class needs labels, but the data has none; put each class in a folder of its own, or use "
                    "condition representation or none."
                )
            labels = getattr(dataset, "labels", None)
            highest = int(batch["labels"].max() if labels is None else labels.max())
            if highest >= config.num_classes:
                raise UserError(
                    f"the data has class label {highest}, but the model knows 0 to {config.num_classes - 1}."
                )

    def param_groups(self, objective: str, weight_decay: float) -> list[dict[str, Any]]:
        """The reference's groups: what is one-dimensional or called a bias does not decay."""
        named = list(self.objectives[objective].named_parameters())
        free = [p for n, p in named if p.ndim <= 1 or n.endswith(".bias")]
        decayed = [p for n, p in named if not (p.ndim <= 1 or n.endswith(".bias"))]
        return [{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]

    def ema_modules(self) -> dict[str, nn.Module]:
        """The model, if an average is kept."""
        return {"model": self.model} if self.ema else {}

    def to(self, device: torch.device) -> None:
        """Move the frozen models."""
        for frozen in (self.tokenizer, self.encoder):
            if frozen is not None:
                frozen.module.to(device)

    def prepare(self, batch: Batch) -> Batch:
        """Tokens and condition of a batch of images; a batch that has them passes through.

        Raises:
            UserError: tokens that do not fit the model.
        """
        config = self.model.config
        if "tokens" not in batch:
            assert self.tokenizer is not None
            images = to_unit(batch["images"])
            batch = {**batch, "tokens": _as_tokenizer(self.tokenizer).encode(images)}
            check_grid(tuple(batch["tokens"].shape[1:]), config.grid_size)
            if config.condition == "representation" and "representations" not in batch:
                assert self.encoder is not None
                batch["representations"] = self.encoder.module(images)
            del batch["images"]
        highest = int(batch["tokens"].max())
        if highest >= config.num_codes:
            raise UserError(f"the data holds code {highest}, but the model knows {config.num_codes} codes (from 0).")
        return batch

    # ------------------------------------------------------------------ figures, pictures, files

    def _samples(self, part: BatchDataset, count: int, seed: int) -> Batch:
        """The first samples of a part, prepared, on the model's device."""
        indices = np.arange(min(count, len(part)))
        seeds = sample_seeds(seed, np.zeros_like(indices), indices)
        pieces: list[Batch] = []
        with torch.no_grad():
            for start in range(0, len(indices), EVAL_BATCH):  # frozen models on large images take memory
                some = slice(start, start + EVAL_BATCH)
                batch = part.batch(indices[some], seeds[some])
                pieces.append(self.prepare({k: v.to(self.model.device) for k, v in batch.items()}))
        return {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}

    @torch.no_grad()
    def evaluate(self, seed: int) -> dict[str, float]:
        """How well held-out images are completed, all positions shown to the encoder as in generation.

        The masks are the same at every call; the share masked is `mask_ratio_mean`.

        Returns:
            `cross_entropy` (nats a masked token) and `accuracy` in [0, 1]; for a conditional model also
            `cross_entropy_unconditional`, the same with the null condition (meaningful with condition dropout only).
        """
        if not len(self.held_out):
            return {}
        data = self._samples(self.held_out, len(self.held_out), seed)
        ids, condition = data["tokens"].flatten(1), condition_of(data, self.model)
        count = math.ceil(ids.shape[1] * self.objective.mask_ratio_mean)
        noise = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed % 2**63)).to(ids.device)
        masked = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, noise.argsort(dim=1)[:, :count], True)
        sums = {"cross_entropy": 0.0, "accuracy": 0.0}
        if condition and self.model.config.condition_dropout > 0:
            sums["cross_entropy_unconditional"] = 0.0
        for chosen in torch.arange(len(ids), device=ids.device).split(EVAL_BATCH):
            shown = ids[chosen].masked_fill(masked[chosen], self.model.config.mask_token_id)
            where, targets = masked[chosen], ids[chosen][masked[chosen]]
            logits = self.model(shown, **{k: v[chosen] for k, v in condition.items()})[where].float()
            sums["cross_entropy"] += F.cross_entropy(logits, targets, reduction="sum").item()
            sums["accuracy"] += (logits.argmax(dim=-1) == targets).sum().item()
            if "cross_entropy_unconditional" in sums:
                logits = self.model(shown)[where].float()
                sums["cross_entropy_unconditional"] += F.cross_entropy(logits, targets, reduction="sum").item()
        return {name: value / int(masked.sum()) for name, value in sums.items()}

    @torch.no_grad()
    def preview(self, seed: int) -> Image.Image | None:
        """A grid of generated images, unguided; None without a tokenizer.

        With condition "representation" these are *not* unconditional samples: the first row shows held-out images
        (through the tokenizer), and below each are draws from its true representation. With condition "class", each
        column is a class.
        """
        if self.tokenizer is None:
            return None
        tokenizer, config = _as_tokenizer(self.tokenizer), self.model.config
        columns, rows = PREVIEW_COLUMNS, PREVIEW_ROWS
        grids: list[Tensor] = []
        condition: dict[str, Tensor] = {}
        if config.condition == "representation":
            part = self.held_out if len(self.held_out) else self.dataset
            shown = self._samples(part, columns, seed)
            columns = len(shown["tokens"])
            grids.append(shown["tokens"])
            condition = {"representations": shown["representations"].repeat(rows, 1)}
        elif config.condition == "class":
            condition = {"class_labels": torch.arange(columns).remainder(config.num_classes).repeat(rows)}
        count = rows * columns
        grids.append(
            generate_tokens(
                self.model,
                self.scheduler,
                batch_size=count,
                generator=sample_generators(seed, 0, count),
                **condition,  # type: ignore[arg-type]
            )
        )
        return make_grid(to_pil(tokenizer.decode(torch.cat(grids)).clamp(0, 1)), columns=columns)

    def export(self, folder: Path) -> None:
        """Write the model and its scheduler's configuration."""
        self.model.save_pretrained(folder)
        self.scheduler.save_pretrained(folder)

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share: the model's config, the objective, and the frozen models."""
        objective = self.objective
        return {
            "model": {k: v for k, v in self.model.config.items() if not k.startswith("_")},
            "mask_ratio": [objective.mask_ratio_mean, objective.mask_ratio_std, objective.mask_ratio_min],
            "label_smoothing": objective.label_smoothing,
            "ema": self.ema,
            "tokenizer": None if self.tokenizer is None else model_hash(self.tokenizer.module),
            "encoder": None if self.encoder is None else model_hash(self.encoder.module),
        }


def check_grid(shape: tuple[int, ...], grid_size: int | None = None) -> int:
    """The side of a square token grid.

    Args:
        shape: (h, w).
        grid_size: the side that a model needs, if there is one already.

    Raises:
        UserError: not square, or of another side.
    """
    if len(shape) != 2 or shape[0] != shape[1]:
        raise UserError(
            f"the tokens form a grid of {' x '.join(map(str, shape))}, but MAGE works on square ones; use square images."
        )
    if grid_size is not None and shape[0] != grid_size:
        raise UserError(
            f"the tokens form a grid of {shape[0]} x {shape[0]}, but the model works on {grid_size} x {grid_size}; "
            "use images of the size the model was made for."
        )
    return shape[0]


def _as_tokenizer(frozen: Frozen) -> Tokenizer:
    tokenizer: Tokenizer = frozen.module  # type: ignore[assignment]
    return tokenizer
