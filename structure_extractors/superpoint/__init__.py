"""SuperPoint: network, weight files, inference, homographic adaptation, extractor."""
