"""How images are inverted, as `rcg.inversion.invert` takes it and rcg-invert asks it. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rcg.core.schema import Count, Positive, Seed, ShareBelowOne, Size


@dataclass(frozen=True)
class Inversion:
    """Adam on the conditions of all images, a batch at a time; there is no weight decay."""

    steps: Count = 2000
    """Steps of Adam for each image; more of them go on with a finished inversion."""
    turn_steps: Count = 100
    """Steps that a batch of images is trained before the next one's turn; a killed run loses no more."""
    batch_size: Size = 50
    """Images trained together: a matter of memory and speed, but it stays once a step is kept. (An RCG pipeline's images draw their
    noise together, so that another size gives other conditions, as another --seed does.)"""
    lr: Positive | None = None
    """Learning rate, constant (default: 0.03 for Stable Diffusion, 0.01 for representations)."""
    beta1: ShareBelowOne = 0.9
    """Adam beta 1."""
    beta2: ShareBelowOne = 0.999
    """Adam beta 2."""
    seed: Seed = 0
    """Seed of beginnings, times and noise."""
