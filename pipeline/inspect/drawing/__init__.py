"""Label maps, structures and patch weights as pictures: pure functions from arrays to uint8 RGB (H, W, 3)."""
