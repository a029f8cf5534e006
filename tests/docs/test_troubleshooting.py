"""The messages that docs/troubleshooting.md explains are messages of the program."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import DOCS

ROOT = DOCS.parent
PACKAGES = ("common", "manifests", "structure_extractors", "pipeline", "train")
HOLE = "\0"
PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
QUOTES = [quote for row in ROWS for quote in re.findall("`(.+?)`", row)]


def written(node: ast.AST) -> str:
    """The text that an expression makes, with a hole for every value that only a run knows.

    >>> written(ast.parse('f"{path}: no " "store" + hint', mode="eval").body).replace(HOLE, "...")
    '...: no store...'
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(written, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return written(node.left) + written(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "mismatch":
        where, expected, got = map(written, node.args[:3])  # common.errors.PhyssegError.mismatch
        return f"{where}: expected {expected}, got {got}"
    return HOLE


def texts_of(file: Path) -> Iterator[str]:
    """Every text that a module can say, in one line; what it says to its reader, in docstrings, is none of them."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if node not in docstrings and (text := written(node)) != HOLE:
            yield " ".join(text.split())


TEXTS = "\n".join({text for package in PACKAGES for file in (ROOT / package).rglob("*.py") for text in texts_of(file)})


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_is_in_the_source(quote: str) -> None:
    """`...` in a quote stands for what a message says of this very run, and for nothing else."""
    literal = [re.escape(piece.strip()) for piece in quote.split("...") if piece.strip()]
    assert sum(map(len, literal)) > 8, f"{quote}: too short to be found by"
    assert re.search(f"[^\n]*?{HOLE}[^\n]*?".join(literal), TEXTS) is not None, (
        f"no message of the program says {quote!r}"
    )


def test_every_row_quotes_a_message_once() -> None:
    assert len(ROWS) >= 40
    assert len(set(QUOTES)) == len(QUOTES)
