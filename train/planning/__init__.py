"""What a training step takes, before anything runs."""
