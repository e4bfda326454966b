"""The published RDM: diffusion with a residual MLP (its model and solvers lie beside this room, where saved models name them)."""
