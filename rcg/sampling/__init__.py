"""What a call of the pipeline is given, made uniform: settings, labels, representations, random streams. Knows no model."""
