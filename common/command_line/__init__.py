"""What all commands have in common, whichever package they are of."""
