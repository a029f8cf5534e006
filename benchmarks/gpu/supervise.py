"""One part from its start to its end, whatever that is."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from common import Goal, Section
from gpu.page import Entry
from gpu.parts import Kit, Part

GRACE_SECONDS = 3.0
"""From being asked to end until being killed."""
LEAST_SECONDS = 8.0
"""What a part needs at least, for PyTorch and CUDA alone."""
TAIL_LINES = 20


def supervise(part: Part, kit: Kit, log: Path, facts: Mapping[str, Any]) -> Entry:
    """Run a part until it ends or its time is over; never raises for what it does.

    Args:
        log: File that takes all that it prints.
        facts: The machine in words, as `common.machine` has them.
    """
    measured = f"{date.today().isoformat()}: " + ", ".join(f"{key} {value}" for key, value in facts.items() if value)
    entry = Entry(what=part.what, status="not started", seconds=0, limit=part.seconds, device=kit.device)
    if kit.seconds < min(LEAST_SECONDS, part.seconds):
        return entry
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [*part.command, "--device", kit.device, "--folder", kit.folder, "--out", kit.out]
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--seconds", str(kit.seconds)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=kit.folder,
        )
        try:
            code: int | None = process.wait(kit.seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_with_all(process)
    entry.seconds, entry.limit, entry.measured = time.monotonic() - started, kit.seconds, measured
    entry.status = "stopped" if code is None else "failed" if code else "done"
    if code:
        entry.error = f"exit code {code}\n" + "\n".join(tail(log))
    if kit.out.exists():
        content = json.loads(kit.out.read_bytes())
        entry.section = Section(**content | {"goals": [Goal(**goal) for goal in content["goals"]]})
    return entry


def end_with_all(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it started, those in sessions of their own as well (torchrun's ranks)."""
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        for each in below:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what was left behind by its parent
    process.wait()


def tail(log: Path) -> list[str]:
    """The last lines that say something; of a bar that is drawn over itself the last state."""
    lines = [line.rstrip().rsplit("\r", 1)[-1] for line in log.read_bytes().decode(errors="replace").split("\n")]
    return [line for line in lines if line][-TAIL_LINES:]
