"""What a run takes, before it runs."""
