"""The error of looking at a store."""

from ...common.errors import PhyssegError


class InspectError(PhyssegError, ValueError):
    """What is to be looked at is not there: no such sample, class or picture; carries close matches."""
