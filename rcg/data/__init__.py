"""Images in, batches out: sources, the embedded sets, and the cache of what frozen models computed."""
