"""Images in, batches out: sources, the embedded procedural set, and the cache of what frozen models computed."""
