"""Training a SuperPoint detector of one's own: shapes, augmentation, self-labelling, the loop, the figures."""
