"""Annotation files (JSON) become label pictures."""
