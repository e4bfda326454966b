"""Representations to images: a room for each family of generators, their tokenizers and their training."""
