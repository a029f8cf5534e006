"""Errors keep their class, hint and facts on the way to whoever reads them."""

import errno
import os
import pickle
from typing import ClassVar

import pytest
from physseg.common.errors import PhyssegError, of_system


class RecordError(PhyssegError, ValueError):
    default_hint: ClassVar[str | None] = "write it again"


@pytest.mark.parametrize(("given", "shown"), [(None, "write it again"), ("wait", "wait")])
def test_the_hint_of_the_class_stands_in_for_one_of_its_own(given: str | None, shown: str) -> None:
    error = RecordError.mismatch("a.json", 3, 4, hint=given, step=7)
    assert (str(error), error.hint) == (f"a.json: expected 3, got 4\n  hint: {shown}", shown)
    assert error.fields == {"step": 7}


def test_a_prefix_keeps_all_the_rest() -> None:
    error = RecordError("torn", hint="wait", step=7).prefixed("run")
    assert (type(error), error.args, error.hint, error.fields) == (RecordError, ("run: torn",), "wait", {"step": 7})


def test_errors_survive_the_way_between_processes() -> None:
    error = RecordError("torn", hint="wait", step=7)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.fields) == (RecordError, str(error), {"step": 7})


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EMFILE, "ulimit -n"), (errno.EROFS, "written"), (errno.EEXIST, "folder is needed")]
)
def test_what_to_do_about_an_error_of_the_system(number: int, words: str) -> None:
    shown = str(of_system(OSError(number, os.strerror(number), "a/b")))
    assert shown.startswith(f"a/b: {os.strerror(number)}\n  hint: ") and words in shown
