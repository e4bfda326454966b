"""Images ↔ tokens or latents: the MaskGIT VQGAN and its training."""
