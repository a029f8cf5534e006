"""The error of drawing."""

from ....common.errors import PhyssegError


class DrawError(PhyssegError, ValueError):
    """Arrays that are to be drawn do not fit each other, or the way to draw them is unknown."""
