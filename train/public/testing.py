"""`physseg.testing`: checks that a part of another package keeps its contract (docs/python.md)."""

__all__: list[str] = []
