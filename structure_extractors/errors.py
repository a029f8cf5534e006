"""Named errors of the structure extractors."""

from .. import PhyssegError


class ExtractorError(PhyssegError, ValueError):
    """An extractor was named, configured or called wrongly. Fields: ``option``, ``expected``, ``got``."""


class WeightsError(PhyssegError, ValueError):
    """A file of network weights is absent, changed, unreadable or unknown. Fields: ``path``, ``expected``, ``got``.

    No :class:`ExtractorError`, because it is no fault of a sample: a run must end, not quarantine every photograph.
    """
