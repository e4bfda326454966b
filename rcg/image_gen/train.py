"""The stage that trains an image generator, of any family: its data, its figures and pictures, what it exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rcg.core.components import load_any
from rcg.core.errors import UserError, first_line
from rcg.core.files import encoding_hash, model_hash
from rcg.core.pictures import make_grid, spread, to_pil
from rcg.core.precision import forget
from rcg.core.rng import Noise, derive_seed, sample_seeds
from rcg.data.images import to_unit
from rcg.image_gen.alignment import AlignedObjective
from rcg.image_gen.conditions import condition_of
from rcg.image_gen.families import MODELS
from rcg.image_gen.protocol import Objective, Request
from rcg.image_gen.start import start_from
from rcg.training.checkpoints import STATE, run_of
from rcg.training.stage import Batch, BatchDataset, Frozen, Stage
from rcg.training.subset import Subset, hold_out

PREVIEW_COLUMNS = 8
PREVIEW_ROWS = 3
READ_AT_ONCE = 32
"""Held-out samples that frozen models see together: large images take memory."""


class GeneratorStage(Stage):
    """Trains an image generator on cached codes, or on images through a frozen tokenizer and encoder.

    Args:
        objective: the model and how it is trained; its generator's tokenizer and scheduler come with it.
        dataset: batches with the objective's codes (and `representations` or `labels` as the model's condition needs),
            e.g. a `Cache`; or with `images` uint8 [B, 3, S, S], e.g. an `ImageDataset`, from which the frozen models
            compute them. An `AlignedObjective` needs `images` in any case.
        encoder: a frozen module, images → [B, D]; needed for images with condition "representation".
        held_out: samples kept out of training for `evaluate`, chosen at random but always the same; at most a tenth
            of the data.
        ema: keep, evaluate and export the moving average of the weights. (The paper has none; short runs gain by it.)
        start: a model of the same family and sizes whose weights are where training starts, see `start_from`.

    Raises:
        UserError: the data lacks what the model needs, or has it in another shape; a start that does not fit.
    """

    name = "generator"

    def __init__(
        self,
        objective: Objective,
        dataset: BatchDataset,
        *,
        encoder: nn.Module | None = None,
        held_out: int = 256,
        ema: bool = False,
        start: nn.Module | None = None,
    ) -> None:
        self.objective = objective
        self.objectives = {"generator": cast(nn.Module, objective)}
        self.grouped = objective.grouped
        self.model = objective.model
        self.aligned_to = objective.encoder if isinstance(objective, AlignedObjective) else None
        frozen = (objective.generator.tokenizer, encoder, self.aligned_to)
        self.frozen = [Frozen(m).module for m in frozen if m is not None]
        self.encoder = None if encoder is None else Frozen(encoder)
        self.ema = ema
        self.start = None
        if start is not None:
            start_from(self.model, start)
            self.start = model_hash(start)
        if held_out < 0:
            raise UserError(f"held_out is {held_out}, but it may not be negative.")
        kept, chosen = hold_out(len(dataset), held_out)
        self.dataset = Subset(dataset, kept)
        self.held_out = Subset(dataset, chosen)
        self._check_data(dataset)

    def _check_data(self, dataset: BatchDataset) -> None:
        """Refuse data that does not fit the model, by its first sample and its labels."""
        objective, generator = self.objective, self.objective.generator
        batch = dataset.batch(np.zeros(1, np.int64), np.zeros(1, np.uint64))
        if objective.field in batch:
            objective.check_codes(batch[objective.field])
            if self.aligned_to is not None and "images" not in batch:
                raise UserError(
                    "alignment needs the images themselves, but the data has none; make the cache with rcg-cache --images."
                )
        elif "images" not in batch or generator.tokenizer is None:
            raise UserError(
                f"the data has no {objective.field} and there is no tokenizer to compute them; give a tokenizer."
            )
        if generator.condition == "representation":
            found = batch.get("representations")
            if found is None and ("images" not in batch or self.encoder is None):
                raise UserError(
                    "the data has no representations and there is no encoder to compute them; give an encoder."
                )
            if found is not None and found.shape[1] != generator.representation_dim:
                raise UserError(
                    f"the data's representations have {found.shape[1]} numbers, but the model takes "
                    f"{generator.representation_dim}; build the model for this data."
                )
        if generator.condition in ("class", "cluster"):
            self._check_labels(dataset, batch)

    def _check_labels(self, dataset: BatchDataset, batch: Batch) -> None:
        generator = self.objective.generator
        name = "labels" if generator.condition == "class" else "clusters"
        if name not in batch:
            raise UserError(
                "condition class needs labels, but the data has none; put each class in a folder of its own, or use "
                "condition representation, cluster or none."
                if name == "labels"
                else "condition cluster needs clusters, but the data has none; use a cache with representations."
            )
        labels = getattr(dataset, name, None)
        highest = int(batch[name].max() if labels is None else labels.max())
        if highest >= generator.num_classes:
            raise UserError(
                f"the data has {generator.condition} {highest}, but the model knows 0 to {generator.num_classes - 1}."
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
        for module in self.frozen:
            module.to(device)

    def check(self, batch: Batch) -> None:
        """Refuse codes that do not fit the model."""
        if (codes := batch.get(self.objective.field)) is not None:
            self.objective.check_codes(codes)

    def prepare(self, batch: Batch) -> Batch:
        """Codes and condition of a batch of images; a batch that has them passes through."""
        field = self.objective.field
        by_encoder = self.objective.generator.condition == "representation" and "representations" not in batch
        if field in batch and not by_encoder:
            return batch
        images = to_unit(batch["images"])
        made: Batch = {} if field in batch else {field: self.objective.encode(images)}
        if by_encoder:
            assert self.encoder is not None
            made["representations"] = self.encoder.module(images)
        kept = (field, "labels", "clusters", "indices", *(["images"] if self.aligned_to is not None else []))
        return {k: v for k, v in batch.items() if k in kept} | made

    # ------------------------------------------------------------------ figures, pictures, files

    def _samples(self, part: BatchDataset, count: int, seed: int) -> Batch:
        """Some samples of a part (all, if there are no more), prepared, on the model's device."""
        indices = spread(len(part), count)
        seeds = sample_seeds(seed, np.zeros_like(indices), indices)
        pieces: list[Batch] = []
        with torch.no_grad():
            for start in range(0, len(indices), READ_AT_ONCE):
                some = slice(start, start + READ_AT_ONCE)
                batch = part.batch(indices[some], seeds[some])
                pieces.append(self.prepare({k: v.to(self.model.device) for k, v in batch.items()}))
        return {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}

    def evaluate(self, seed: int) -> dict[str, float]:
        """The objective's figures of the held-out samples."""
        if not len(self.held_out):
            return {}
        return self.objective.evaluate(self._samples(self.held_out, len(self.held_out), seed), seed)

    @torch.no_grad()
    def preview(self, seed: int) -> Image.Image | None:
        """A grid of generated images, unguided; None where codes cannot be decoded.

        With condition "representation" these are *not* unconditional samples: the first row shows held-out images
        (through the tokenizer), and below each are draws from its true representation. With condition "class" or
        "cluster", each column is one.
        """
        generator = self.objective.generator
        if not generator.decodable:
            return None
        columns, above = PREVIEW_COLUMNS, list[Tensor]()
        condition: dict[str, Any] = {"representations": None, "class_labels": None}
        if generator.condition == "representation":
            part = self.held_out if len(self.held_out) else self.dataset
            shown = self._samples(part, columns, seed)
            above = [shown[self.objective.field]]
            columns = len(above[0])
            condition |= {k: v.repeat(PREVIEW_ROWS, 1) for k, v in condition_of(shown, "representation").items()}
        elif generator.num_classes:
            labels = torch.arange(columns, device=self.model.device).remainder(generator.num_classes)
            condition["class_labels"] = labels.repeat(PREVIEW_ROWS)
        noise = Noise([derive_seed(seed, i) for i in range(columns * PREVIEW_ROWS)], self.model.device)
        own = generator.defaults()
        steps, temperature = own["num_inference_steps"], own["temperature"]
        try:
            drawn = generator.generate(
                Request(noise, **condition, num_inference_steps=steps, temperature=temperature, precision="auto")
            )
        finally:
            forget(self.model)  # the next picture is of other weights
        return make_grid(to_pil(generator.decode(torch.cat([*above, drawn]), "auto")), columns=columns)

    def export(self, folder: Path) -> None:
        """Write the model and its scheduler's configuration."""
        self.model.save_pretrained(folder)
        self.objective.generator.scheduler.save_pretrained(folder)

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share: the model's config, the objective, and the frozen models."""
        tokenizer = self.objective.generator.tokenizer
        return {
            # MAGE's objective tells its mask_ratio_min, which configs of older checkpoints lack
            "model": {k: v for k, v in self.model.config.items() if not k.startswith("_") and k != "mask_ratio_min"},
            **self.objective.identity(),
            "ema": self.ema,
            **({} if self.start is None else {"start": self.start}),
            "tokenizer": None if tokenizer is None else model_hash(tokenizer),
            "encodings": None if tokenizer is None else encoding_hash(tokenizer),
            "encoder": None if self.encoder is None else model_hash(self.encoder.module),
            **({} if self.aligned_to is None else {"aligned_to": model_hash(self.aligned_to)}),
        }


def load_earlier(checkpoint: Path) -> nn.Module:
    """The generator of a finished run as it was at a checkpoint, averaged where the run kept that: a weaker one, to guide away from.

    Args:
        checkpoint: `OUT/training/checkpoints/step-…` of a run of `rcg-train-generator`.

    Raises:
        UserError: no finished generator in OUT, a checkpoint of something else, or a damaged one.
    """
    run, file = run_of(checkpoint), checkpoint / STATE
    if run is None:
        raise UserError(
            f"{checkpoint} is no checkpoint of a run; give a folder such as OUT/training/checkpoints/step-00001000."
        )
    model: nn.Module = load_any(MODELS, run)
    own, held = model.state_dict(), dict[str, torch.Tensor]()
    try:
        with safe_open(file, "pt") as state:
            keys = set(state.keys())
            first = next(iter(own))
            # averages are those of parameters alone; buffers are beside the trained weights
            places = [k.removesuffix(first) for k in keys if k.startswith("model.") and k.endswith(f".{first}")]
            for name, value in own.items():
                found = [k for k in (f"ema.model.{name}", *(place + name for place in places)) if k in keys]
                if not found or tuple(state.get_slice(found[0]).get_shape()) != tuple(value.shape):
                    raise UserError(f"{checkpoint} is not of the generator in {run}; give one of its own checkpoints.")
                held[name] = state.get_tensor(found[0])
    except (OSError, SafetensorError) as e:
        raise UserError(f"{file} is damaged ({first_line(e)}); give another checkpoint.") from None
    model.load_state_dict(held, assign=True)  # not into the finished weights, which may be mapped from their file
    return model
