"""How good a detector is: figures beside the classical detectors, and pictures of where it fails."""
