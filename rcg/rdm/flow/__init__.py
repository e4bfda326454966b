"""Representations by flow matching: straight paths, which few steps follow."""
