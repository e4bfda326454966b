"""LDM, the U-Net of latent diffusion with cross-attention: representation → noise in the latents of an autoencoder."""
