"""The small tools that every room stands on: errors, files, random streams, pictures, weights of a component. Knows no model."""
