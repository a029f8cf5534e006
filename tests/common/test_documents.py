"""Documents with a format: what is read, and what is said of all others."""

import errno
import json
from pathlib import Path

import pytest
from physseg.common.documents import parsing, read_document, read_text
from physseg.common.errors import ConfigError

from ..fuzzing import mutants, survives


def test_a_document_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"format": 1, "files": {}}))
    assert read_document(path, 1, ConfigError, "fault", keys=["files"]) == {"format": 1, "files": {}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "fault"),
        ("{", "fault"),
        ("[1]", "no format"),
        ('"format"', "no format"),
        ("{}", "no format, files"),
        ('{"format": 1}', "no files"),
        ('{"format": 2}', "format 2, this physseg reads 1"),
    ],
)
def test_other_files_are_named(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_document(path, 1, ConfigError, "fault", keys=["files"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_document(tmp_path / "a.json", 1, ConfigError, "fault")


def test_a_text_is_read_without_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffcafé\r\n".encode())
    assert read_text(path, ConfigError, "a list") == "café\r\n"
    for encoding, name in (
        ("utf-16", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("latin-1", "LATIN1"),
    ):
        path.write_bytes("café".encode(encoding))
        with pytest.raises(ConfigError, match=f"iconv -f {name} -t UTF-8 {path} > a[.]utf8[.]csv"):
            read_text(path, ConfigError, "a list")
    with pytest.raises(ConfigError, match="expected a list, got no such file"):
        read_text(tmp_path / "none", ConfigError, "a list")


def test_a_files_own_fault_is_told_from_the_machines(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a.json: bad \(Is a directory\)"), parsing(ConfigError, "a.json: bad"):
        tmp_path.read_bytes()
    with pytest.raises(OSError, match="broken disk"), parsing(ConfigError, "a.json"):
        raise OSError(errno.EIO, "a broken disk")


def test_a_bug_of_ours_inside_the_boundary_shows_as_one() -> None:
    """What a parser raises for foreign bytes is known; a division by zero or a failed assertion is none of it."""
    for bug in (ZeroDivisionError, AssertionError, MemoryError, NameError):
        with pytest.raises(bug), parsing(ConfigError, "a.json"):
            raise bug


def test_documents_of_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "a.json", json.dumps({"format": 1, "files": {"a": [1, 2]}}).encode()
    read = 0
    for number, data in enumerate(mutants(good, seed=0, count=200)):
        path.write_bytes(data)
        read += survives(lambda: read_document(path, 1, ConfigError, "fault", keys=["files"]), f"mutant {number}")
    assert 0 < read < 100
