"""Training a flow decoder: the tokens are those of a tokenizer that is trained already."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from rcg.core.files import model_hash
from rcg.image_gen.tokenizers.flow.objective import FlowDecoderObjective
from rcg.image_gen.tokenizers.train import ReconstructionStage
from rcg.training.stage import BatchDataset


class FlowDecoderStage(ReconstructionStage):
    """Trains the flow decoder of a VQTokenizer on images; its moving average is what is evaluated and exported.

    Args:
        objective: what to train.
        dataset: batches with "images" uint8 [B,3,S,S].
        held_out: images that are not trained on, for evaluation and previews; without them `dataset` stands in.
        eval_images: how many images, always the same, `evaluate` looks at.
    """

    name: ClassVar[str] = "flow decoder"

    def __init__(
        self,
        objective: FlowDecoderObjective,
        dataset: BatchDataset,
        held_out: BatchDataset | None = None,
        eval_images: int = 512,
    ) -> None:
        super().__init__(objective.tokenizer, dataset, held_out, eval_images)
        self.objective = objective
        self.objectives = {"flow_decoder": objective}

    def ema_modules(self) -> dict[str, nn.Module]:
        return {"flow_decoder": self.objective.decoder}

    @torch.no_grad()
    def evaluate(self, seed: int) -> dict[str, float]:
        """`velocity_error`, the training loss with the same times and noise at every call, and figures of reconstructions."""
        total, count = 0.0, 0
        for images in self._fixed_batches(self.eval_images):
            generator = torch.Generator().manual_seed((seed + count) % 2**63)
            quantiles = (torch.arange(len(images)) + 0.5) / len(images)
            times, noise = self.objective.matching.times(quantiles), torch.randn(images.shape, generator=generator)
            losses = self.objective.losses(images, times.to(images.device), noise.to(images.device))
            total, count = total + float(losses.sum()), count + len(images)
        return {"velocity_error": total / count, **super().evaluate(seed)}

    def identity(self) -> dict[str, Any]:
        sizes = self.tokenizer.config["flow_decoder"]
        blurred = model_hash(self.tokenizer, ["flow", "flow_decoder"])
        return {"flow_decoder": dict(sizes), "tokenizer": blurred, **self.objective.matching.identity()}
