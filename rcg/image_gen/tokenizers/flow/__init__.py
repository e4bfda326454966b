"""A tokenizer's decoder that draws images from tokens by flow matching, and its training."""
