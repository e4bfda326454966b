"""A learned condition for every image of a set (Diffusion Inversion, arXiv 2305.15316), and training sets made from them."""
