"""Errors of the manifests package: what can be wrong with a data set, its files, or a manifest."""

from ..common.errors import PhyssegError


class ManifestError(PhyssegError, ValueError):
    """A data set folder or a manifest file cannot be used as a whole; nothing was written."""


class DecodeError(ManifestError):
    """Bytes that are not the picture they should be. Carries `expected` and `got`; the caller adds the path."""


class ContentError(ManifestError):
    """One sample's files cannot be used: a quarantine entry. Carries `sample_id`, `path`, `expected`, `got`."""
