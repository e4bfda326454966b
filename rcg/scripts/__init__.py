"""The commands: one thin file each. Nothing imports this package."""
