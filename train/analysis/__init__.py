"""What trained models have to say about the method: the analyses of the paper."""
