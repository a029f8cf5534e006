"""Weights by others' names and in others' files: CLIP's, CAT-Seg's, and our exports."""
