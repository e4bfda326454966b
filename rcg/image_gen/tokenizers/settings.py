"""How a tokenizer is trained, as its training takes it and rcg-train-tokenizer asks it. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rcg.core.errors import UserError
from rcg.core.schema import Count, CountOrZero, NonNegative, ShareBelowOne


@dataclass(frozen=True)
class TokenizerLoss:
    """Weights of the tokenizer's loss."""

    l1_weight: NonNegative = 1.0
    """Weight of the mean absolute error, images in [0, 1]."""
    l2_weight: NonNegative = 0.0
    """Weight of the mean squared error, images in [0, 1]."""
    # VQ-VAE's 0.25, for errors five times larger, makes latents of CIFAR-10 collapse
    commitment_weight: NonNegative = 0.05
    """Weight of the pull of latents to their codes."""
    perceptual_weight: NonNegative = 0.0
    """Weight of the distance between the feature maps of a frozen encoder."""
    adversarial_weight: NonNegative = 0.0
    """Weight of a PatchGAN's hinge loss; 0 trains no discriminator."""
    adversarial_start: CountOrZero = 0
    """Step at which it begins."""
    adversarial_adaptive: bool = True
    """Scale the adversarial term so that it pulls as hard at the last layer as the reconstruction does."""

    def validate(self) -> None:
        """Raise `UserError` for weights that go together badly."""
        if self.l1_weight == 0 and self.l2_weight == 0:
            raise UserError(
                "--l1-weight and --l2-weight are both 0, so nothing would be reconstructed; raise one of them."
            )


@dataclass
class CodebookSettings:
    """How the codebook is trained."""

    codebook_decay: ShareBelowOne = 0.99
    """Decay of the codes' moving averages, a step."""
    revive_after: Count = 50
    """Steps after which a code that nobody chose is moved to a latent of the current batch."""
    codebook_warmup: CountOrZero = 100
    """Steps at the start without quantisation, after which the codebook is placed on the latents."""

    def validate(self) -> None:
        """Raise `UserError` where nothing would be averaged."""
        if self.codebook_decay == 0:
            raise UserError("--codebook-decay is 0, but it must lie between 0 and 1.")
