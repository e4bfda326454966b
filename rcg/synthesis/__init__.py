"""Training images from generators: several of each caption, or of each representation, in WebDataset shards."""
