"""The whole recipe under a time budget: from a folder of images to a scored pipeline. Start at `rcg.recipe.run`."""
