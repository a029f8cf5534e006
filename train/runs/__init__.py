"""What a run leaves behind: folder, checkpoints, log."""
