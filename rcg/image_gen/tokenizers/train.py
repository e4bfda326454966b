"""Training a VQTokenizer: reconstruction, commitment, and on request a perceptual and an adversarial term.

Objective `tokenizer` holds encoder, decoder and codebook; objective `discriminator`, when there is one, the PatchGAN with
an optimiser of its own. A learned codebook moves by moving averages (see `rcg.image_gen.tokenizers.vq_codebook`); a finite
scalar quantiser has nothing to learn. On request only the decoder learns, so that the tokens of images stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from rcg.core.errors import UserError
from rcg.core.files import encoding_hash, model_hash
from rcg.core.schema import check_config
from rcg.data.images import to_unit
from rcg.image_gen.tokenizers.quantizers import VectorQuantizer
from rcg.image_gen.tokenizers.settings import CodebookSettings, TokenizerLoss
from rcg.image_gen.tokenizers.vq_codebook import CodebookTrainer
from rcg.image_gen.tokenizers.vq_losses import (
    ChosenMaps,
    FeatureMaps,
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    perceptual_distance,
)
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer
from rcg.training.stage import Batch, BatchDataset, Frozen, Stage


@dataclass
class _Exchange:
    """What the tokenizer's objective leaves for the discriminator's, within one micro-batch."""

    real: Tensor | None = None
    fake: Tensor | None = None


class TokenizerObjective(nn.Module):
    """Loss of encoder and decoder, and the codebook's statistics.

    Args:
        tokenizer: the model to train. Its codebook is taken out of the gradient's hands.
        loss: the weights.
        perceptual: frozen network with `feature_maps`; needed when `loss.perceptual_weight` is above 0.
        discriminator: needed when `loss.adversarial_weight` is above 0; not registered here.
        codebook: how it is trained, where one is learned. If the run ends within the warm-up, it is placed on the latents
            then.
        decoder_only: train the decoder on the tokens of a tokenizer that is trained already; no codebook is learned then.
    """

    step: Tensor

    def __init__(
        self,
        tokenizer: VQTokenizer,
        loss: TokenizerLoss,
        perceptual: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        codebook: CodebookSettings | None = None,
        decoder_only: bool = False,
    ) -> None:
        super().__init__()
        codebook = codebook or CodebookSettings()
        check_config(loss)
        check_config(codebook)
        if loss.perceptual_weight > 0 and perceptual is None:
            raise UserError("--perceptual-weight needs an encoder; give its folder with --perceptual-encoder.")
        if perceptual is not None and not hasattr(perceptual, "feature_maps"):
            raise UserError(f"a {type(perceptual).__name__} has no feature_maps, so it gives no perceptual distance.")
        self.tokenizer = tokenizer
        self.tokenizer.quantize.requires_grad_(False)
        self.decoder_only = decoder_only
        self.codebook = None
        if decoder_only:
            self.tokenizer.encoder.requires_grad_(False)
        elif isinstance(tokenizer.quantize, VectorQuantizer):
            self.codebook = CodebookTrainer(
                tokenizer.config["num_codes"],
                tokenizer.config["code_dim"],
                codebook.codebook_decay,
                codebook.revive_after,
            )
        self.codebook_warmup = codebook.codebook_warmup
        self.loss = loss
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.done = 0  # what `step` says, without waiting for the device
        self.register_load_state_dict_post_hook(lambda own, _: setattr(own, "done", int(own.step)))
        self._perceptual = Frozen(perceptual) if perceptual is not None else None
        self._discriminator = [discriminator] if discriminator is not None else []
        self.exchange = _Exchange()
        self._unquantised: Tensor | None = None  # vectors of the last pass of the warm-up

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """batch["images"]: float [B,3,H,W] in [0,1]. Returns the loss and figures, all scalars."""
        images, step = batch["images"], self.done
        figures: dict[str, Tensor] = {}
        loss = torch.zeros((), device=images.device)
        if self.decoder_only:
            latents = self.tokenizer.quantized(images)
        elif self.codebook is None:
            quantized = self.tokenizer.quantize_latents(self.tokenizer.encode_latents(images))
            latents, ids = quantized.latents, quantized.ids.flatten()
            counts = torch.zeros(self.tokenizer.config["num_codes"], device=images.device)
            figures["perplexity"] = perplexity(counts.index_add_(0, ids, torch.ones(len(ids), device=images.device)))
        else:
            latents, loss, figures = self._quantize(self.codebook, self.tokenizer.encode_latents(images), step)
        reconstruction = self.tokenizer.decode_latents(latents)
        l1, l2 = F.l1_loss(reconstruction, images), F.mse_loss(reconstruction, images)
        reference = self.loss.l1_weight * l1 + self.loss.l2_weight * l2
        figures |= {"l1": l1, "psnr": -10 * l2.clamp(min=1e-10).log10()}
        if self._perceptual is not None and self.loss.perceptual_weight > 0:
            maps = cast(FeatureMaps, self._perceptual.module).feature_maps
            with torch.no_grad():
                target = maps(images)
            distance = perceptual_distance(maps(reconstruction), target)
            reference = reference + self.loss.perceptual_weight * distance
            figures["perceptual"] = distance
        loss = loss + reference
        if self._discriminator and step >= self.loss.adversarial_start:
            adversarial = self._fool(reconstruction)
            weight = images.new_full((), self.loss.adversarial_weight)  # a number copied there would be waited for
            if self.loss.adversarial_adaptive:
                weight = weight * adaptive_weight(reference, adversarial, self.tokenizer.decoder.conv_out.weight)
            loss = loss + weight * adversarial
            figures |= {"adversarial": adversarial, "adversarial_weight": weight}
            self.exchange.real, self.exchange.fake = images, reconstruction.detach()
        else:
            self.exchange.real = self.exchange.fake = None
        return {"loss": loss, **{k: v.detach() for k, v in figures.items()}}

    @property
    def codes(self) -> Tensor:
        """The learned codebook [num_codes, code_dim], out of the gradient's sight."""
        return cast(VectorQuantizer, self.tokenizer.quantize).embedding.weight.data

    def _quantize(
        self, codebook: CodebookTrainer, latents: Tensor, step: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What the decoder gets to see of the latents, the loss of the codebook's part, and figures."""
        vectors = latents.detach().permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        if step < self.codebook_warmup:
            self._unquantised = vectors
            return latents, torch.zeros((), device=latents.device), {}
        if not codebook.begun:
            codebook.start(self.codes, vectors)
        quantized = self.tokenizer.quantize_latents(latents)
        counts = codebook.observe(vectors, quantized.ids.flatten())
        commitment = quantized.commitment_loss
        figures = {"commitment": commitment, "perplexity": perplexity(counts), "codes_used": codebook.used}
        return quantized.latents, self.loss.commitment_weight * commitment, figures

    def end(self) -> None:
        """Where a run ends within the warm-up, give the tokenizer codes all the same; one that goes on starts them anew."""
        codebook, vectors = self.codebook, self._unquantised
        if codebook is None or codebook.begun or vectors is None:
            return
        codebook.start(self.codes, vectors)
        codebook.started.fill_(False)
        codebook.begun = False

    def _fool(self, reconstruction: Tensor) -> Tensor:
        """Hinge loss of the generator, -mean D(reconstruction); no gradient reaches the discriminator's weights."""
        discriminator = self._discriminator[0]
        weights = {k: v.detach() for k, v in discriminator.named_parameters()}
        return -torch.func.functional_call(discriminator, weights, (reconstruction,)).float().mean()


class DiscriminatorObjective(nn.Module):
    """Hinge loss of the PatchGAN on what the tokenizer's objective has just seen and made.

    Args:
        discriminator: the network to train.
        exchange: of the tokenizer's objective, which must run first on every micro-batch.
    """

    def __init__(self, discriminator: PatchDiscriminator, exchange: _Exchange) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.exchange = exchange

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns loss and the mean logits of real and reconstructed patches; zero before the adversarial start."""
        real, fake = self.exchange.real, self.exchange.fake
        if real is None or fake is None:  # every parameter takes part, as DistributedDataParallel wants it
            return {"loss": torch.stack([p.sum() * 0.0 for p in self.parameters()]).sum()}
        real_logits, fake_logits = self.discriminator(torch.cat([real, fake])).float().chunk(2)
        loss = hinge_discriminator_loss(real_logits, fake_logits)
        return {"loss": loss, "real_logit": real_logits.detach().mean(), "fake_logit": fake_logits.detach().mean()}


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of a histogram [K]: how many equally frequent codes would be as varied."""
    p = counts / counts.sum().clamp(min=1)
    return torch.exp(-(p * p.clamp(min=1e-12).log()).sum())


class ReconstructionStage(Stage):
    """What trainings of a tokenizer share: images as batches, and how near reconstructions of held-out ones are.

    Args:
        tokenizer: the model.
        dataset: batches with "images" uint8 [B,3,H,W].
        held_out: images that are not trained on, for evaluation and previews; without them `dataset` stands in.
        eval_images: how many images, always the same, `evaluate` looks at.
        eval_batch: images in one forward pass of the evaluation.
    """

    def __init__(
        self,
        tokenizer: VQTokenizer,
        dataset: BatchDataset,
        held_out: BatchDataset | None,
        eval_images: int,
        eval_batch: int = 64,
    ) -> None:
        self.tokenizer, self.dataset = tokenizer, dataset
        self.held_out = held_out or dataset
        self.eval_images, self.eval_batch = min(eval_images, len(self.held_out)), eval_batch

    def prepare(self, batch: Batch) -> Batch:
        return {"images": to_unit(batch["images"])}

    def _fixed_batches(self, count: int) -> Iterator[Tensor]:
        """The first `count` of the evaluation's images, spread over the set, as float batches on the model's device."""
        indices = np.linspace(0, len(self.held_out) - 1, count).round().astype(np.int64)
        for part in np.split(indices, range(self.eval_batch, count, self.eval_batch)):
            images = self.held_out.batch(part, np.zeros(len(part), np.uint64))["images"]
            yield to_unit(images.to(self.tokenizer.device))

    @torch.no_grad()
    def evaluate(self, seed: int) -> dict[str, float]:
        """PSNR (mean over images, dB) and L1 of reconstructions in [0,1]; perplexity and share of the codes in use."""
        counts = torch.zeros(self.tokenizer.config["num_codes"], device=self.tokenizer.device)
        psnr, l1 = [], []
        for images in self._fixed_batches(self.eval_images):
            ids = self.tokenizer.encode(images)
            error = self.tokenizer.decode(ids) - images
            psnr.append(-10 * error.square().mean((1, 2, 3)).clamp(min=1e-10).log10())
            l1.append(error.abs().mean((1, 2, 3)))
            counts += torch.bincount(ids.flatten(), minlength=len(counts))
        return {
            "psnr": float(torch.cat(psnr).mean()),
            "l1": float(torch.cat(l1).mean()),
            "perplexity": float(perplexity(counts)),
            "codes_used": float((counts > 0).float().mean()),
        }

    @torch.no_grad()
    def preview(self, seed: int) -> Image.Image:
        """Held-out images in up to four whole rows of eight, each row of originals over its reconstructions."""
        count = min(32, len(self.held_out))
        columns = min(8, count)
        images = torch.cat(list(self._fixed_batches(count - count % columns)))
        rebuilt = self.tokenizer.decode(self.tokenizer.encode(images))
        rows = [torch.cat([a, b]) for a, b in zip(images.split(columns), rebuilt.split(columns), strict=True)]
        grid = make_grid(torch.cat(rows).cpu(), nrow=columns, padding=2)
        return Image.fromarray((grid * 255).round().byte().permute(1, 2, 0).numpy())

    def export(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)


class TokenizerStage(ReconstructionStage):
    """Trains a VQTokenizer on images.

    Args:
        tokenizer: the model.
        dataset: batches with "images" uint8 [B,3,H,W].
        held_out: images that are not trained on, for evaluation and previews; without them `dataset` stands in.
        loss, codebook: settings.
        perceptual: frozen encoder with `feature_maps`, for the perceptual term.
        discriminator: the PatchGAN, used when `loss.adversarial_weight` is above 0.
        decoder_only: train the decoder alone (its moving average is what is evaluated and exported); `codebook` then
            plays no part.
        eval_images: how many images, always the same, `evaluate` looks at.
        eval_batch: images in one forward pass of the evaluation.

    Raises:
        UserError: settings out of range, or images too small for the discriminator.
    """

    name: ClassVar[str] = "tokenizer"

    def __init__(
        self,
        tokenizer: VQTokenizer,
        dataset: BatchDataset,
        held_out: BatchDataset | None = None,
        loss: TokenizerLoss | None = None,
        codebook: CodebookSettings | None = None,
        perceptual: nn.Module | None = None,
        discriminator: PatchDiscriminator | None = None,
        decoder_only: bool = False,
        eval_images: int = 512,
        eval_batch: int = 64,
    ) -> None:
        super().__init__(tokenizer, dataset, held_out, eval_images, eval_batch)
        self.loss = loss or TokenizerLoss()
        self.codebook = codebook or CodebookSettings()
        self.perceptual = perceptual
        if self.loss.adversarial_weight > 0 and discriminator is None:
            discriminator = PatchDiscriminator(tokenizer.config["in_channels"])
        if self.loss.adversarial_weight == 0:
            discriminator = None
        if discriminator is not None:
            first = dataset.batch(np.zeros(1, np.int64), np.zeros(1, np.uint64))
            discriminator.check_size(min(first["images"].shape[-2:]))
        self.objective = TokenizerObjective(
            tokenizer, self.loss, perceptual, discriminator, self.codebook, decoder_only
        )
        self.objectives = {"tokenizer": self.objective}
        if discriminator is not None:
            self.objectives["discriminator"] = DiscriminatorObjective(discriminator, self.objective.exchange)

    def parts_matter(self, world: int) -> str | None:
        """A codebook learns from all latents, but starts and revives codes from the first process's."""
        clauses = []
        if self.objective.codebook is not None:
            clauses.append("codes are started and revived from the first process's part of a batch")
        if "discriminator" in self.objectives and self.loss.adversarial_adaptive:
            clauses.append("each process weighs the adversarial term by its own part")
        return ", and ".join(clauses) or None

    def param_groups(self, objective: str, weight_decay: float) -> list[dict[str, Any]]:
        """As usual, but the discriminator's weights do not decay (before its start they must not move at all)."""
        return super().param_groups(objective, 0.0 if objective == "discriminator" else weight_decay)

    def ema_modules(self) -> dict[str, nn.Module]:
        """What learns by gradient, but with a learned codebook nothing: that fits the encoder of its own step only."""
        if self.objective.decoder_only:
            return {"decoder": self.tokenizer.decoder}
        if self.objective.codebook is None:
            return {"encoder": self.tokenizer.encoder, "decoder": self.tokenizer.decoder}
        return {}

    def kept_whole(self) -> list[nn.Module]:
        """The codebook, which moving averages write, and the discriminator, which the tokenizer's objective runs, too."""
        return [self.tokenizer.quantize, *(o for name, o in self.objectives.items() if name == "discriminator")]

    def to(self, device: torch.device) -> None:
        if self.perceptual is not None:
            self.perceptual.to(device)

    def on_step_end(self, step: int, total_steps: int) -> None:
        self.objective.step.fill_(step)
        self.objective.done = step
        if self.objective.codebook is not None:
            self.objective.codebook.update(self.objective.codes)
        if step == total_steps:
            self.objective.end()

    def identity(self) -> dict[str, Any]:
        config = {k: v for k, v in self.tokenizer.config.items() if not k.startswith("_")}
        return {
            "tokenizer": config,
            "loss": asdict(self.loss),
            **({"tokens": encoding_hash(self.tokenizer)} if self.objective.decoder_only else {}),
            **({"codebook": asdict(self.codebook)} if self.objective.codebook is not None else {}),
            "perceptual": model_hash(self.perceptual) if self.perceptual is not None else None,
            **({"perceptual_layers": self.perceptual.indices} if isinstance(self.perceptual, ChosenMaps) else {}),
        }
