"""Images and words to label maps."""
