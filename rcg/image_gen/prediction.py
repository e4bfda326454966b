"""What a model of a Gaussian diffusion predicts. Imports no torch, so that `--help` stays quick."""

from __future__ import annotations

from typing import Literal

PredictionType = Literal["epsilon", "v_prediction"]
"""By diffusers' names: noise ε (DDPM), or velocity √ᾱ_t · ε − √(1 − ᾱ_t) · x₀ (arXiv 2202.00512)."""
