"""Training and judging SuperPoint detectors."""
