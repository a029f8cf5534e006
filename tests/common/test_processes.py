"""Processes: their environment, their memory, and their end with the one that started them."""

import mmap
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from physseg.common.errors import PhyssegError
from physseg.common.processes import (
    available_cpus,
    children_without_ctrl_c,
    end_with_parent,
    environment,
    in_processes,
    memory_of,
    peak_bytes,
)

PROGRAM = """
import sys
from physseg.common.processes import keep_freed_memory, memory_of

if sys.argv[1] == "keep":
    assert keep_freed_memory()
buffer = bytearray(b"x") * (200 * 2**20)
held = memory_of("self").now
del buffer
print((held - memory_of("self").now) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("mode", "given_back"), [("keep", False), ("default", True)])
def test_freed_memory(mode: str, given_back: bool) -> None:
    """In a process of its own: the setting cannot be taken back."""
    result = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    assert (int(result.stdout) > 150) == given_back


CHILD = """
import signal
print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


@pytest.fixture
def own_ctrl_c() -> Iterator[None]:
    """Python's answer to Ctrl-C, whatever tests before have put in its place."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_block_and_never_reaches_its_children(own_ctrl_c: None) -> None:
    """Not even those of a thread that goes on, as a cluster's nannies have."""
    threads, blocked, end = [], [], threading.Event()
    threading.Thread(target=end.wait).start()  # one from before, which may get the signal

    def start_child() -> None:
        said = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True).stdout
        blocked.append(said.strip())

    with pytest.raises(KeyboardInterrupt), children_without_ctrl_c():
        os.kill(os.getpid(), signal.SIGINT)
        multiprocessing.get_context("spawn").Lock()  # has the resource tracker started, which unblocks it
        threads.append(threading.Thread(target=start_child))
        threads[0].start()
        start_child()
    end.set()
    threads[0].join()
    start_child()
    assert blocked.count("True") == 2 and blocked[-1] == "False"


def test_an_environment_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHYSSEG_A", "before")
    monkeypatch.delenv("PHYSSEG_B", raising=False)
    with pytest.raises(RuntimeError), environment({"PHYSSEG_A": "1", "PHYSSEG_B": "2"}):
        assert (os.environ["PHYSSEG_A"], os.environ["PHYSSEG_B"]) == ("1", "2")
        raise RuntimeError
    assert os.environ["PHYSSEG_A"] == "before" and "PHYSSEG_B" not in os.environ


def test_cpus_are_those_that_this_process_may_use() -> None:
    command = "from physseg.common.processes import available_cpus; print(available_cpus())"
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
    one = {min(os.sched_getaffinity(0))}
    result = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {one}); {command}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "1\n"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="read from /proc")
def test_the_peak_of_memory_stays_when_the_memory_goes() -> None:
    before = memory_of("self")
    size = max(0, before.peak - before.now) + 100 * 2**20
    with mmap.mmap(-1, size) as buffer:  # new pages, whatever this process keeps of earlier ones
        buffer[:: mmap.PAGESIZE] = b"x" * len(range(0, size, mmap.PAGESIZE))
        held = memory_of("self")
    assert held.now >= before.now + size * 0.9
    assert memory_of("self").peak >= held.now * 0.99 and peak_bytes() == memory_of("self").peak


def test_no_such_process_has_no_memory() -> None:
    assert (memory_of(None).now, memory_of(2**30).peak) == (0, 0)


SCRIPT = """
import operator, signal, sys
from physseg.common.errors import PhyssegError
from physseg.common.processes import in_processes
sys.stdout.write("run " + __name__ + chr(10))
def negative(number): return -number
if {guard}:
    function = negative if sys.argv[1] == "own" else operator.neg
    print(sorted(in_processes(function, {tasks}, workers=2, death=PhyssegError("died"))), __file__ == sys.argv[0])
"""


@pytest.mark.parametrize(
    ("guard", "function", "runs"), [("True", "another's", 1), ("__name__ == '__main__'", "own", 3)], ids=str
)
def test_a_script_is_run_again_only_for_its_own_functions(tmp_path: Path, guard: str, function: str, runs: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(guard=guard, tasks=[1, 2, 3]))
    done = subprocess.run([sys.executable, str(script), function], capture_output=True, text=True, check=True)
    assert done.stdout.count("run __") == runs
    assert done.stdout.endswith("[-3, -2, -1] True\n")


def test_a_killed_process_leaves_no_words_of_semaphores(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(guard=True, tasks="map(signal.raise_signal, [15])"))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), ""], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


def child(to_test: Connection) -> None:
    end_with_parent()
    to_test.send(os.getpid())
    time.sleep(600)


def parent(to_test: Connection) -> None:
    multiprocessing.get_context("spawn").Process(target=child, args=(to_test,)).start()
    time.sleep(600)


def test_a_child_ends_when_its_parent_is_killed() -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    starter = context.Process(target=parent, args=(there,))
    starter.start()
    there.close()
    assert here.poll(60)
    grandchild = here.recv()
    os.kill(starter.pid or 0, signal.SIGKILL)
    starter.join()
    assert here.poll(60)  # the other end of the pipe is closed by the end of the last process that holds it
    with pytest.raises(EOFError):
        here.recv()
    assert memory_of(grandchild).now == 0


def test_every_task_is_done_however_slowly_results_are_taken() -> None:
    """All that was handed out may be done before the next result is asked for; tasks are taken as needed."""
    left, found = iter(range(30)), []
    for result in in_processes(abs, left, workers=2, death=PhyssegError("a process died")):
        found.append(result)
        time.sleep(0.02)
        if len(found) == 1:
            assert next(left) <= 4
    assert len(found) == 29
