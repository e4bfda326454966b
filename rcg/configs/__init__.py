"""YAML presets, one file a preset: flat `flag: value` lines."""
