"""Noise to representations: the representation diffusion model (RDM), its sampling and training."""
