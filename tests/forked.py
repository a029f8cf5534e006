"""Processes of the tests: real ones, with signals and exit codes, that start in milliseconds instead of seconds.

One server imports what commands need (torch, Dask, the trainer) once per test session and forks itself for each. Its
children are in all else as `python -c` would start them: in a session of their own, with the caller's environment and
current folder.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

SERVER = r"""
import atexit, contextlib, importlib, json, os, select, signal, sys, threading, traceback, warnings

import dask

for module in (
    "physseg.cli", "physseg.train.loop.loop", "physseg.train.evaluation.evaluate", "torch._dynamo", "pyarrow.dataset",
    "physseg.pipeline.run.run", "physseg.pipeline.run.verify", "distributed", "zarr", "obstore",
):
    with contextlib.suppress(ImportError):
        importlib.import_module(module)


def child(job):
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, max(output, ends, woken) + 1)
    os.environ.clear()
    os.environ.update(job["environment"])
    # Dask reads its configuration when it is imported, which was before there was this environment.
    dask.config.refresh(paths=[*dask.config.paths, os.environ.get("DASK_CONFIG", "")])
    os.chdir(job["folder"])
    sys.path[:] = job["path"]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)
    code = 0
    try:
        exec(job["code"], {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


answers, (woken, ends) = sys.stdout, os.pipe()
os.set_blocking(ends, False)
signal.set_wakeup_fd(ends)
signal.signal(signal.SIGCHLD, lambda *_: None)
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the tests', whose end is the server's
print("ready", file=answers, flush=True)
while True:
    ready, _, _ = select.select([sys.stdin, woken], [], [])
    if sys.stdin in ready:
        line = sys.stdin.buffer.readline()  # one job at a time: nothing waits behind it
        if not line:
            break
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks: torch has a thread that sleeps
            pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            child(json.loads(line))
        print("began", pid, file=answers, flush=True)
    if woken in ready:
        os.read(woken, 4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                print("ended", ended[0], os.waitstatus_to_exitcode(ended[1]), file=answers, flush=True)
"""


class Server:
    """Forks processes on demand and knows how they ended; ends itself with the process that made it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._news = threading.Condition()
        self._alive = True
        self._began: list[int] = []
        self.codes: dict[int, int] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, *numbers = line.split()
            with self._news:
                if word == "began":
                    self.codes.pop(int(numbers[0]), None)  # numbers come again
                    self._began.append(int(numbers[0]))
                elif word == "ended":
                    self.codes[int(numbers[0])] = int(numbers[1])
                self._news.notify_all()
        with self._news:
            self._alive = False
            self._news.notify_all()

    def begin(self, job: Mapping[str, Any]) -> int:
        assert self._process.stdin is not None
        with self._news:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._news.wait_for(lambda: self._began or not self._alive, 300)
            assert self._began, "the server of forked processes did not start"
            return self._began.pop()

    def wait(self, pid: int, timeout: float | None) -> int | None:
        with self._news:
            self._news.wait_for(lambda: pid in self.codes, timeout)
            return self.codes.get(pid)


@functools.cache
def server() -> Server:
    return Server()


class Forked:
    """As `subprocess.Popen`, as far as tests need it; output of both kinds goes to a file."""

    def __init__(self, code: str, output: Path, **environment: str) -> None:
        self.output = output.absolute()  # the server is in another folder
        job = {"code": code, "output": str(self.output), "folder": str(Path.cwd()), "path": sys.path}
        self.pid = server().begin(job | {"environment": {**os.environ, **environment}})

    @property
    def returncode(self) -> int | None:
        return server().codes.get(self.pid)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        code = server().wait(self.pid, timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.output), timeout or 0)
        return code

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text() if self.output.exists() else ""

    def wait_for_text(self, text: str, seconds: float = 120) -> None:
        wait_until(lambda: text in self.text() or self.poll() is not None, seconds)
        assert text in self.text(), self.text()

    def group(self) -> list[psutil.Process]:
        """What is left of its session: itself and what it started."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def wait_until_gone(self) -> None:
        """With all that it started."""
        wait_until(lambda: not self.group(), seconds=30)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it and what it started, if a test did not."""
        self.kill()
        self.wait(20)
        for process in self.group():
            with contextlib.suppress(psutil.NoSuchProcess):  # gone since they were listed
                process.kill()


def wait_until(is_true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def calling(*words: object, before: str = "") -> str:
    """The code of `physseg WORDS`; `before` may change constants of the product first."""
    return f"{before}\nimport sys\nsys.argv = {['physseg', *map(str, words)]}\nfrom physseg.cli import main\nmain()"
