"""Any representation-conditional generator of this library, inverted: which representation makes this image?"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rcg.core.errors import UserError
from rcg.core.files import model_hash
from rcg.core.rng import derive_seed
from rcg.data.build import CacheField, Views
from rcg.data.image_source import ImageSource
from rcg.data.images import ImageDataset, to_unit
from rcg.image_gen.families import family_of
from rcg.image_gen.tokenizers.codec import codec_of
from rcg.inversion.frozen import Kind
from rcg.pipeline import RCGPipeline

Init = Literal["encoder", "zero"]
"""Where representations begin."""
ENCODED = 64
"""Images in one pass of an encoder."""


class RepresentationGenerator:
    """See `rcg.inversion.frozen.FrozenGenerator`.

    A condition is a representation [D]. It begins as the encoder's, or at zero, and follows the gradient of the generator's own training
    loss (`rcg.image_gen.protocol.Objective`), whose draws of times, noise or masks follow from the seeds of the block of
    images and the step; nothing is dropped, neither weights nor conditions.

    Args:
        pipe: its generator has condition "representation".
        settings: of the pipeline's call, for drawing; guidance is given with each image.
        init: "encoder" needs an encoder, "zero" does not.

    Raises:
        UserError: a pipeline without the encoder that is needed, or whose generator takes no representations.
    """

    kind: Kind = "rcg"
    default_lr = 1e-2

    def __init__(self, pipe: RCGPipeline, settings: dict[str, Any] | None = None, init: Init = "encoder") -> None:
        self.pipe, self.settings, self.beginning = pipe, settings or {}, str(init)
        self.shape: tuple[int, ...] = (pipe.representation_dim,)
        if pipe.encoder is None and init == "encoder":
            raise UserError(
                "this pipeline has no encoder to begin from; assemble it with one (rcg-assemble --encoder DIR), or "
                "begin at zero (--init zero)."
            )
        model: Any = pipe.image_generator
        self.objective = family_of(model).objective(pipe.generator)
        self.field = self.objective.field
        if pipe.tokenizer is None:
            views = Views()
            self.fields = {self.field: CacheField(views, views, "uint8")}
            self.image_size = int(model.config.get("image_size") or model.config.sample_size)
        else:
            codec = codec_of(pipe.tokenizer)
            self.fields = {self.field: CacheField(pipe.tokenizer, codec.encode, codec.storage(False))}
            side = model.config.get("grid_size") or model.config.sample_size
            self.image_size = int(side) * codec.factor
        if pipe.encoder is not None and init == "encoder":
            self.fields["representations"] = CacheField(pipe.encoder, pipe.encoder, "float32")
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        self.bf16 = False

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return cast(torch.device, self.pipe.device)

    def identity(self) -> str:
        """See the protocol."""
        encoder = "" if self.pipe.encoder is None else model_hash(self.pipe.encoder)
        return hashlib.sha256(f"{self.pipe.identity()} {encoder}".encode()).hexdigest()[:16]

    def prepare(self, device: torch.device, bf16: bool, checkpointing: bool) -> None:
        """See the protocol; bf16 is autocast."""
        if checkpointing:
            model: Any = self.pipe.image_generator
            if not getattr(model, "_supports_gradient_checkpointing", False):
                raise UserError(
                    f"--gradient-checkpointing: a {type(model).__name__} has none; leave it out and lower --batch-size."
                )
            model.enable_gradient_checkpointing()
        self.pipe.to(device)
        self.bf16 = bf16

    def start(self, batch: dict[str, Tensor], seeds: list[int]) -> Tensor:
        """The encoder's representations, or zeros."""
        if self.beginning == "zero":
            return torch.zeros(len(seeds), *self.shape, device=self.device)
        return batch["representations"].float().clone()

    def loss(self, batch: dict[str, Tensor], conditions: Tensor, seeds: list[int], step: int) -> Tensor:
        """See the protocol.

        Objectives spread the times of a batch over its places, so that the images change places at every step.
        """
        device, count = self.device, len(conditions)
        low = torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), low:
            torch.manual_seed(derive_seed(*seeds[:1], count, step))
            order = torch.randperm(count).to(device, non_blocking=True)
            shown = {self.field: batch[self.field][order], "representations": conditions[order]}
            kept = torch.ones(count, device=device)
            loss: Tensor = self.objective.forward(shown, condition_noise=kept)["loss"]
        return loss.float() * count

    # ------------------------------------------------------------------ drawing

    def drawing(self) -> dict[str, object]:
        """See the protocol."""
        return {**self.pipe.settings(**self.settings), "precision": "bf16" if self.bf16 else "fp32"}

    @torch.no_grad()
    def draw(self, conditions: Tensor, scales: list[float], seeds: list[int]) -> Tensor:
        """See the protocol."""
        size = self.image_size
        images = torch.empty(len(conditions), 3, size, size)
        for scale in sorted(set(scales)):
            chosen = [i for i, s in enumerate(scales) if s == scale]
            made = self.pipe(
                representations=conditions[chosen].to(self.device),
                guidance_scale=scale,
                generator=[torch.Generator().manual_seed(seeds[i]) for i in chosen],
                output_type="pt",
                precision="bf16" if self.bf16 else "fp32",
                **self.settings,
            )
            images[chosen] = cast(Any, made).images.float().cpu()
        return images


@torch.no_grad()
def encode_images(
    encoder: nn.Module, source: ImageSource, size: int, device: torch.device | str = "cpu", *, progress: bool = False
) -> Tensor:
    """Representations of all images of a source, framed plainly.

    Args:
        encoder: moved to `device`.
        source: the images.
        size: side in pixels that they are brought to.
        device: where the encoder runs.
        progress: show a progress bar.

    Returns:
        float32 [N, D], on the CPU; no row depends on what lies beside it.
    """
    images = ImageDataset(source, size, memory=0)
    found = []
    encoder = encoder.to(device).eval()
    with tqdm(total=len(source), desc=f"encoding {source.name}", unit=" images", disable=not progress) as bar:
        for start in range(0, len(source), ENCODED):
            rows = np.arange(start, min(len(source), start + ENCODED))
            batch = to_unit(images.batch(rows, np.zeros(len(rows), np.uint64))["images"])
            short = ENCODED - len(rows)  # always as many: kernels round differently for other numbers
            whole = torch.cat([batch, batch[-1:].expand(short, -1, -1, -1)]) if short else batch
            found.append(encoder(whole.to(device)).float().cpu()[: len(rows)])
            bar.update(len(rows))
    return torch.cat(found)
