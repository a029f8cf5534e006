"""Named errors of the structure extractors."""

from ..common.errors import PhyssegError


class ExtractorError(PhyssegError, ValueError):
    """An extractor was named, configured or called wrongly."""


class WeightsError(PhyssegError, ValueError):
    """A file of network weights is absent, changed, unreadable or unknown.

    No ExtractorError, because it is no fault of a sample: a run must end, not quarantine every photograph.
    """


class DeviceError(PhyssegError, RuntimeError):
    """A GPU that an extractor is set to use is not there. No ExtractorError either: it is the machine's fault."""


class PackageError(PhyssegError, RuntimeError):
    """A worker's machine lacks an extractor's package, or has another revision. The machine's fault as well."""
