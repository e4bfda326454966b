"""ADM, OpenAI's diffusion U-Net on pixels: representation → noise, with no tokenizer."""
