"""The training loop: objective, optimiser, averages, ranks."""
