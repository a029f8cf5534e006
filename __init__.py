"""physseg: pseudo ground truth computed once, open-vocabulary segmenters trained on it many times."""

from typing import Any

__version__ = "0.1.0"


class PhyssegError(Exception):
    """Base of every error a user can cause or meet; each package derives named errors from it and a builtin.

    The message says where, what was expected and what was found. ``hint`` says what to do next. ``fields`` carry the
    same facts for programs (``path``, ``sample_id``, ``expected``, ``got``, ``step``, ...).
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  hint: {self.hint}" if self.hint else message
