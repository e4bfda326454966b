"""Representations as discrete codes: a residual quantiser and a masked transformer over its codes."""
