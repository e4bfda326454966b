"""What the families share that learn to tell noise from data: the process, its objective, two samplers, the generator."""
