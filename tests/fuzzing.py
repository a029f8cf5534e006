"""Seeded damage to files, and what every reader of other people's files owes: an answer, or one error of ours.

    for number, data in enumerate(mutants(good, seed=0, count=100)):
        file.write_bytes(data)
        survives(lambda: read(file), f"mutant {number}")

No traceback, no hang, no memory beyond a bound; in this process, so that a hundred take a second.
"""

import copy
import json
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from physseg.common.errors import PhyssegError

SECONDS = 10
"""What a reader may take for a file of a few KB."""
MAX_BYTES = 10**9
"""Address space that a reader may add to what the process has."""
WHOLE_FILES = (
    b"",
    b"\0",
    b"null",
    b"[]",
    b"{}",
    b'"text"',
    b"1",
    b"NaN",
    b"1e999",
    b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}",
)
VALUES = (None, True, -1, 0, 0.5, 10**9, 2**63, 2**64, 10**400, 1e300, float("nan"), float("inf"), "", "x", "x" * 5000)
VALUES += ("\ud800", "\0", "../../etc/passwd", "0" * 64, [], {}, [[]], {"": {}}, [None], {"x": [1]}, list(range(2000)))


def mutants(good: bytes, *, seed: int, count: int) -> Iterator[bytes]:
    """A file's bytes with flipped bits, parts cut, doubled, zeroed or made of another part; and a few whole others."""
    draw = random.Random(seed)
    deep = (b"[" * 100_000, b'{"a":' * 100_000, b"[" + b"9" * 5000 + b"]")
    others = [*WHOLE_FILES, *deep]
    for _ in range(count):
        data = bytearray(good)
        start = draw.randrange(len(data))
        stop = min(len(data), start + draw.choice((1, 4, 64, 4096)))
        kind = draw.randrange(8)
        if kind < 3:
            for _ in range(draw.choice((1, 1, 3))):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == 3:
            del data[start:]
        elif kind == 4:
            del data[start:stop]
        elif kind == 5:
            data[start:stop] = bytes(stop - start)
        elif kind == 6:
            data[start:start] = data[: stop - start]
        else:
            data = bytearray(draw.choice(others))
        yield bytes(data)


def mutated(document: Any, draw: random.Random) -> Any:
    """A JSON document with one or two values exchanged, gone or wrapped, which a checksum of its own would not see."""
    document = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 2))):
        places = list(_places(document))
        if not places:
            return draw.choice(VALUES)
        parent, key = draw.choice(places)
        kind = draw.randrange(6)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            parent[key] = [parent[key]]
        elif kind == 2 and isinstance(parent, dict):
            parent[draw.choice(("x", "", "\u202e", "__class__"))] = parent[key]
        else:
            parent[key] = copy.deepcopy(draw.choice(VALUES))
    return document


def survives(read: Callable[[], object], what: str) -> bool:
    """Whether `read` answered rather than refused; anything but an answer or an error of ours fails the test."""
    try:
        with bounded():
            read()
    except PhyssegError as error:
        assert str(error.args[0]).strip(), f"{what}: an error without words"
        return False
    except BaseException as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:300]}") from error
    return True


@contextmanager
def bounded() -> Iterator[None]:
    """TimeoutError after `SECONDS`, MemoryError beyond `MAX_BYTES` more than the process has."""

    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (now + MAX_BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def as_json(document: Any) -> bytes:
    """As a writer without scruples has it: with NaN and lone surrogates."""
    return json.dumps(document, indent=1).encode()


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    if not isinstance(document, dict | list):
        return
    for key, value in list(document.items() if isinstance(document, dict) else enumerate(document)):
        yield document, key
        yield from _places(value)
