"""Dask's errors in one line with the file to mend, and its log, which is silent unless it was configured."""

import errno
import itertools
import logging
from pathlib import Path

import dask
import distributed  # noqa: F401  (sets the levels of its log)
import pytest
from physseg.pipeline.run.executors.dask_library import LOGGERS, import_dask, log_level, one_line


def chained(*errors: BaseException) -> Exception:
    """The first, raised from the second, and so on."""
    for above, below in itertools.pairwise(errors):
        above.__cause__ = below
    assert isinstance(errors[0], Exception)
    return errors[0]


@pytest.mark.parametrize(
    ("error", "says", "hint"),
    [
        (chained(RuntimeError("Nanny"), ValueError("no context\n 'hello'")), "ValueError: no context 'hello'", "FILE"),
        (chained(RuntimeError("a"), RuntimeError("b"), KeyError("unit: soon")), "KeyError: 'unit: soon'", "FILE"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/scratch"), "No such file", "FILE"),
        (chained(RuntimeError("Nanny failed"), RuntimeError("process died")), "RuntimeError: process died", "memory"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused", "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory", "memory"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files", "ulimit -n"),
        (chained(OSError("Timed out"), KeyboardInterrupt()), "OSError: Timed out", "memory"),
    ],
)  # fmt: skip
def test_an_error_of_dask_names_its_cause_and_what_to_mend(
    error: Exception, says: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("distributed: {admin: {log-length: 10}}")
    (tmp_path / "comments.yaml").write_text("# distributed:\n")  # as Dask itself writes one
    monkeypatch.setattr(dask.config, "paths", [str(tmp_path)])
    made = one_line("they do not start", error)
    assert made.args[0].startswith("they do not start: ") and says in made.args[0] and "\n" not in made.args[0]
    assert made.hint is not None and hint.replace("FILE", str(tmp_path / "mine.yaml")) in made.hint
    assert "comments.yaml" not in made.hint


def test_without_a_file_it_is_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask.config, "paths", [])
    assert "DASK_" in str(one_line("they do not start", KeyError("unit")).hint)
    assert one_line("no answer", TypeError("TLS expects an ssl_context"), "give TLS's files").hint == "give TLS's files"


@pytest.mark.parametrize(
    "configured", [{"logging": {"distributed": "info"}}, {"distributed.logging": {"distributed.worker": "error"}}]
)
def test_dasks_log_is_silent_unless_somebody_configured_it(configured: dict[str, object]) -> None:
    before = {name: logging.getLogger(name).level for name in LOGGERS}
    try:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.INFO)
        with dask.config.set(configured):
            import_dask()
            assert log_level() == 0
            assert {logging.getLogger(name).level for name in LOGGERS} == {logging.INFO}
        import_dask()
        assert log_level() == logging.CRITICAL
        assert not any(logging.getLogger(name).isEnabledFor(logging.ERROR) for name in LOGGERS)
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
