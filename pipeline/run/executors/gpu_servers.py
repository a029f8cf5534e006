"""Processes that have a GPU each, for the workers of a local cluster: started before them and ended after them."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from ....structure_extractors.superpoint.extractor import SuperPoint
from ....structure_extractors.superpoint.inference import first_gpu, gpus
from ....structure_extractors.superpoint.server import VARIABLE, serve
from ..errors import ExecutorError
from ..task import ShardTask

START_SECONDS = 120.0
"""To import PyTorch and start the device: seconds, and on a cold file system a minute."""
END_SECONDS = 5.0
SOCKET_PATH_BYTES = 100
"""That every Unix takes."""


def need_gpu(tasks: Iterable[ShardTask]) -> bool:
    """Whether any of the tasks computes SuperPoint on one."""
    return any(
        isinstance(extractor, SuperPoint) and extractor.device == "cuda"
        for task in tasks
        for extractor in task.extractors
    )


def check_gpu(tasks: Iterable[ShardTask]) -> None:
    """Raises DeviceError where tasks need a GPU and this machine has none."""
    if need_gpu(tasks):
        first_gpu()


@contextlib.contextmanager
def serving(tasks: Iterable[ShardTask]) -> Iterator[Mapping[str, str]]:
    """One server for each GPU of this machine if any of the tasks needs one; else none.

    Yields the environment by which workers find them. Raises DeviceError and ExecutorError.
    """
    if not need_gpu(tasks):
        yield {}
        return
    first_gpu()
    with serving_on(gpus()) as environment:
        yield environment


@contextlib.contextmanager
def serving_on(devices: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """A server for each of PyTorch's devices. Raises ExecutorError if one does not start."""
    folder = _private_folder()
    started: list[tuple[str, BaseProcess, Connection]] = []
    sockets = [str(folder / str(number)) for number in range(len(devices))]
    context = multiprocessing.get_context("spawn")
    try:
        for device, socket in zip(devices, sockets, strict=True):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(socket, device, theirs), daemon=True)
            process.start()
            theirs.close()  # or its end would never be seen
            started.append((device, process, ours))
        for device, _, ours in started:
            _wait_until_ready(device, ours)
        yield {VARIABLE: os.pathsep.join(sockets)}
    finally:
        for _, server, ours in started:
            server.terminate()
            ours.close()
        for _, server, _ in started:
            server.join(END_SECONDS)
            server.kill()  # a driver may hold it; does nothing to one that has ended
        shutil.rmtree(folder, ignore_errors=True)


def _private_folder() -> Path:
    """A new folder that only its owner can enter, at a path short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="physseg-"))
    if len(os.fsencode(folder)) > SOCKET_PATH_BYTES - len("/999"):
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="physseg-", dir="/tmp"))
    return folder


def _wait_until_ready(device: str, server: Connection) -> None:
    try:
        problem = json.loads(server.recv_bytes()) if server.poll(START_SECONDS) else f"not within {START_SECONDS:.0f} s"
    except (EOFError, OSError):
        problem = "it was killed"
    if problem:
        raise ExecutorError(
            f"the process that computes SuperPoint on {device} does not start: {problem}",
            hint="does `nvidia-smi` show the GPU, with memory to spare? CUDA_VISIBLE_DEVICES chooses among several",
            got=device,
        )


def _serve(socket: str, device: str, parent: Connection) -> None:
    """What a server's process runs. Says "" when it may be asked, or why it cannot."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends this
    threading.Thread(target=_end_with_parent, args=(Path(socket).parent,), daemon=True).start()
    try:
        serve(socket, device, ready=lambda: parent.send_bytes(json.dumps("").encode()))
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        with contextlib.suppress(OSError):  # it is no longer listening
            parent.send_bytes(json.dumps(text[:2000]).encode())


def _end_with_parent(folder: Path) -> None:
    """A parent that is killed cannot tidy up behind itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)
