"""A pixel-space diffusion transformer for small images: representation → pixels, by flow matching, with no tokenizer."""
