"""Errors of the manifests package: what can be wrong with a data set, its files, or a manifest."""

from typing import ClassVar

from ..common.errors import PhyssegError


class ManifestError(PhyssegError, ValueError):
    """A data set folder or a manifest file cannot be used as a whole; nothing was written."""


class DecodeError(ManifestError):
    """Bytes that are not the picture they should be; the caller adds the path.

    The field `reason` says under which heading the file is quarantined, if not as unreadable.
    """

    default_hint: ClassVar[str | None] = "the file is damaged or incomplete; copy or download it again"


class LabelFormatError(DecodeError):
    """A label file that holds ids in another form than expected, or none."""

    default_hint = (
        "take the file out of its archive again; in a data set of your own, labels must be single-channel pictures of "
        "class ids (8-bit, palette or 16-bit PNG): turn colour-coded maps into ids first, e.g. with a dict from colour "
        "to class index"
    )

    def __init__(self, message: str, *, hint: str | None = None, reason: str = "label format") -> None:
        super().__init__(message, hint=hint, reason=reason)


class ContentError(ManifestError):
    """One sample's files cannot be used."""
