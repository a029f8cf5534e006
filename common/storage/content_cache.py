"""A local folder of files from far away, named by their sha256: whoever asks for the same bytes finds them.

Nothing has to be invalidated, as a file that changed has another name. Runs, ranks and loader processes share one
folder; it grows until somebody empties it, which may happen at any time between runs.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from ..atomic import atomic_write
from ..errors import StorageError


class ContentCache:
    """Files below `folder`, which is made when the first one is kept."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def file(self, sha256: str, fetch: Callable[[], bytes], where: str) -> Path:
        """The local file with the content of that hash (hex), which `fetch` brings the first time from `where`.

        Raises StorageError for a content that is something else, or cannot be kept.
        """
        if not re.fullmatch("[0-9a-f]{64}", sha256):  # of a manifest or store from elsewhere
            raise StorageError.mismatch(where, "a sha256 in hex", repr(sha256), hint="make the manifest again")
        path = self.folder / sha256[:2] / sha256
        if path.exists():
            return path
        data = fetch()
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            hint = "it was damaged or replaced: make the manifest again, or `physseg verify STORE --repair`"
            got = f"{found[:12]} ({len(data)} bytes)"
            raise StorageError.mismatch(where, f"sha256 {sha256[:12]}", got, hint=hint)
        try:
            atomic_write(path, data)
        except OSError as error:
            hint = "make room, choose another folder for the cache, or do without"
            raise StorageError(f"{self.folder}: cannot keep {where} here: {error.strerror}", hint=hint) from error
        return path
