"""The segmenter: CLIP, cost aggregation, decoder, auxiliary heads, and inference by sliding windows."""
