"""Representations to images: the VQ tokenizer, the MAGE generator, its scheduler and their training."""
