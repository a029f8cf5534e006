"""Image (and label map) to one structure map each; pure functions on arrays."""
