"""One training loop for every stage: `Stage` says what to train, `TrainingConfig` how, `train` does it."""
