"""How good it is: FID, IS, KID, precision and recall, representation Fréchet distance, probes."""
