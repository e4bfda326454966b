"""Trained pipelines and single models that come with the library, one folder a model; `rcg.core.shipped` finds them."""
