"""Class files in the forms people have, and the form of any other by its name.

A class's id is its place in the file. A form that is taken for plain lines gives every class a wrong name, or shifts
all ids, and nothing notices. So every class file from outside is read here.
"""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from ...common.documents import read_text
from ..errors import ManifestError
from ..vocabulary import checked_classes

FORMS = "one class per line, also numbered in order (`0: sea`, `0,sea`); or a JSON list of names or of {id, name}"
MAX_BYTES = 20_000_000

_NUMBERED = re.compile(r"\s*(\d{1,9})(?:\s*[:;,.)=|\t]\s*|\s+)(\S.*)")
_COLUMNS = re.compile(r"\s*\d+\s*[:;,\t]")
_OTHER_FORMS = (
    ("tab-separated columns", re.compile(r"\S\t+\s*\S")),
    ("names separated by semicolons", re.compile(";")),
    ("quoted names", re.compile(r"""\s*(["'`]).*\1\s*,?\s*$""")),
    ("a YAML list", re.compile(r"\s*-\s")),
    ("a YAML document", re.compile(r".*:\s*$|---\s*$")),
    ("XML, or a label map in braces", re.compile(r".*[<>{}]")),
    ("a comment", re.compile(r"\s*(#|//)")),
)


def read_class_file(path: Path, *, first_id: int = 0) -> tuple[str, ...]:
    """The classes of a file in one of `FORMS`, in order.

    Args:
        first_id: Id that the first class gets. A file that numbers it otherwise is read with a warning.

    Raises:
        ManifestError: There is no such file, or it has another form, which is named; a name is empty or stands there
            twice; numbers do not run from 0 or 1 without a gap.
    """
    text = read_text(path, ManifestError, "a class file", FORMS, max_bytes=MAX_BYTES)
    if not text.strip():
        raise ManifestError.mismatch(path, "one class per line", "an empty file")
    if text.lstrip()[:1] in ("[", "{"):
        return _from_json(path, text, first_id)
    lines = text.rstrip().split("\n")  # splitlines() also splits at form feeds
    numbered = [match for line in lines if (match := _NUMBERED.fullmatch(line.rstrip()))]
    if len(numbered) < len(lines):
        if len(lines) > 1 and 2 * sum(bool(_COLUMNS.match(line)) for line in lines) >= len(lines):
            where = next(index for index, line in enumerate(lines) if not _NUMBERED.fullmatch(line.rstrip()))
            raise _refused(
                f"{path}, line {where + 1}", f"a table of which this line has no number: {lines[where][:60]!r}"
            )
        _check_form(path, lines)
        return checked_classes(path, lines)
    numbers, names = [int(match[1]) for match in numbered], [match[2] for match in numbered]
    if len(names) == 183 and names[0] == "unlabeled":  # to `182: wood`
        hint = "`physseg manifest coco-stuff` knows its classes; elsewhere name them one per line, without line 0"
        raise ManifestError(f"{path}: COCO-Stuff's labels.txt; its label pictures hold these numbers - 1", hint=hint)
    _check_numbers(path, numbers, "line", first_id)
    _check_form(path, names)
    return checked_classes(path, names)


def _from_json(path: Path, text: str, first_id: int) -> tuple[str, ...]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"a file that begins like JSON and is none ({str(error)[:80]})") from error
    if isinstance(entries, dict):
        kind = "a COCO annotation file" if "categories" in entries else "a JSON object"
        raise _refused(path, f"{kind} with {', '.join(map(repr, list(entries)[:4]))}")
    if all(isinstance(entry, str) for entry in entries):
        return checked_classes(path, entries, "entry")
    for number, entry in enumerate(entries, start=1):
        kinds = isinstance(entry, dict) and (type(entry.get("id")), type(entry.get("name")))
        if kinds != (int, str):
            raise _refused(f"{path}, entry {number}", f"{str(entry)[:60]!r} in a JSON list")
    _check_numbers(path, [entry["id"] for entry in entries], "entry", first_id)
    return checked_classes(path, [entry["name"] for entry in entries], "entry")


def _check_numbers(path: Path, numbers: Sequence[int], unit: str, first_id: int) -> None:
    for place, number in enumerate(numbers):
        if number != numbers[0] + place or numbers[0] not in (0, 1):
            got = str(number) if len(str(number)) < 20 else "a longer one"
            hint = "a class's id is its place: sort them, and name the gaps; names that begin with numbers go into JSON"
            expected = f"number {min(numbers[0], 1) + place}"
            raise ManifestError.mismatch(f"{path}, {unit} {place + 1}", expected, got, hint=hint)
    if numbers[0] != first_id:
        text = "warning: %s numbers its classes from %d; here their ids begin at %d"
        logging.getLogger(__name__).warning(text, path, numbers[0], first_id)


def _check_form(path: Path, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines, start=1):
        for form, pattern in _OTHER_FORMS:
            if pattern.search(line) if form.startswith(("tab", "names")) else pattern.match(line):
                raise _refused(f"{path}, line {number}", f"{form}: {line.strip()[:60]!r}")


def _refused(where: object, got: str) -> ManifestError:
    return ManifestError.mismatch(where, "a class file", got, hint=FORMS)
