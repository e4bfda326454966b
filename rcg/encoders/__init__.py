"""Images to representations: SSLEncoder, its checkpoints, and self-supervised training."""
