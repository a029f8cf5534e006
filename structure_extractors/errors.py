"""Named errors of the structure extractors."""

from .. import PhyssegError


class ExtractorError(PhyssegError, ValueError):
    """An extractor was named, configured or called wrongly. Fields: ``option``, ``expected``, ``got``."""


class WeightsError(ExtractorError):
    """A file of network weights is absent, unreadable or unknown. Fields: ``path``, ``expected``, ``got``."""
