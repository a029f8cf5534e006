"""Store and images to a segmenter: data, model, losses, loop, evaluation and prediction."""
