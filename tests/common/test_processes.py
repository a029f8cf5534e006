"""Freed memory stays in the process, where the C library is glibc."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
from physseg.common.processes import keep_freed_memory

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

if sys.argv[1] == "keep":
    assert keep_freed_memory()
buffer = bytearray(b"x") * (200 * 2**20)
held = resident_mib()
del buffer
print(held - resident_mib())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("mode", "given_back"), [("keep", False), ("default", True)])
def test_freed_memory(mode: str, given_back: bool) -> None:
    """In a process of its own: the setting cannot be taken back."""
    result = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    assert (int(result.stdout) > 150) == given_back
