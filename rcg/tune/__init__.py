"""Finding the settings that a pipeline samples best with: guidance, temperature, steps, by a metric on few images."""
