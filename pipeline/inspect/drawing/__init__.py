"""Label maps, structures and patch weights as pictures: pure functions from arrays to uint8 RGB (H, W, 3).

Everything is deterministic: equal arrays give equal pixels. Nothing else of the pipeline is imported.
"""
