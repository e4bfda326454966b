"""Noise to representations: models of their distribution (RDM), a room a method, their sampling and training."""
