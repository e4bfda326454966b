"""Published weights in and out: what is this file, which component does it become, and where did every key go."""
