"""Sets of images that come with the library. Start at `sets`."""
