"""EDM's pixel U-Net, the classic for small images: representation → pixels, without a tokenizer."""
