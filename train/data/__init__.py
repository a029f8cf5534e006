"""Store and images to batches: order, crop, augmentation."""
