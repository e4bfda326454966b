"""DiT, a diffusion transformer on the latents of an autoencoder: representation → latents, by taking noise away."""
