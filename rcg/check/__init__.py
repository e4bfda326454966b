"""Is this data, and are these models, fit for the purpose? Looked at in about a minute, before hours are spent."""
