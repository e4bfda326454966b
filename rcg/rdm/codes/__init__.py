"""Representations as discrete codes: a product quantiser and a masked transformer over its codes."""
