"""One process that has a GPU computes SuperPoint's probability maps for many that have none.

Each process that uses a GPU by itself takes hundreds of megabytes of it, and of the machine's memory, before it
computes anything. What is sent over a Unix socket: a JSON header and a grey picture there, a JSON header and the
probabilities back. Suppression, threshold and coding stay with who asks, so a result is exactly that of the extractor
using the same device by itself.

Pictures are computed one by one (``infer`` says why). That should suffice: a CPU core decodes, resizes, computes the
other structures of and compresses some 30 images a second, and a GPU should run a network as small as this one on a
thousand frames of 384x512 in that time. The way to the server and back takes about 0.8 ms of wall time for such a
frame, half of it in the server, so one server has enough to give to some thirty cores. The way was measured, the GPU
was not.
"""

import itertools
import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import BufferTooShort
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.errors import PhyssegError
from ..errors import DeviceError, WeightsError
from .inference import Answer, Network, infer

VARIABLE = "PHYSSEG_SUPERPOINT_SERVERS"
"""In the environment of those who ask: the sockets, joined as ``PATH`` is."""
HEADER_BYTES = 2**16
ANSWER_SECONDS = 300.0
"""So long a server may take: a thousand times what it should with all others in front. Then its GPU hangs."""
BACKLOG = 1024
"""Connections that wait to be accepted: all workers may come at once."""


# --- who asks -------------------------------------------------------------------------------------------------------


def servers() -> tuple[str, ...]:
    """Sockets of the servers that this process should ask; none unless somebody started some for it."""
    return tuple(path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path)


def ask(sockets: tuple[str, ...], network: Network, grey: npt.NDArray[np.uint8]) -> Answer:
    """What the network says of a picture (H, W) uint8, from one of the servers.

    They take turns, each asking process beginning elsewhere: were each bound to one server by its process id, some
    would have twice the work of others. Raises DeviceError if a server is gone or its device failed, WeightsError.
    """
    socket = sockets[next(_turns) % len(sockets)]
    probability = np.empty(grey.shape, np.float32)
    with _asking:  # a connection is one question and one answer at a time
        try:
            header = _exchange(_connection(socket), network, grey, probability)
        except (OSError, EOFError, ValueError) as error:
            _forget(socket)  # half an answer may be in it
            raise DeviceError(
                f"the process that computes SuperPoint on a GPU does not answer: {str(error) or 'it has ended'}",
                hint="it was killed or its GPU failed, usually for lack of memory; the same command again goes on",
                got=socket,
            ) from error
    if "error" in header:
        raise _ERRORS.get(header["error"], DeviceError)(header["message"], hint=header["hint"])
    return Answer(probability, header["threshold"])


def _exchange(
    connection: Connection, network: Network, grey: npt.NDArray[np.uint8], probability: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """One question, and the header of its answer; ``probability`` is filled in unless that is an error."""
    connection.send_bytes(_header(**asdict(network), height=grey.shape[0], width=grey.shape[1]))
    _send(connection, grey)
    if not connection.poll(ANSWER_SECONDS):
        raise TimeoutError(f"no answer for {ANSWER_SECONDS:.0f} s")
    header: dict[str, Any] = json.loads(connection.recv_bytes(HEADER_BYTES))
    if "error" not in header:
        _receive(connection, probability)
    return header


_ERRORS: dict[str, Callable[..., PhyssegError]] = {kind.__name__: kind for kind in (DeviceError, WeightsError)}
"""That keep their class on the way."""
_asking = threading.Lock()
_turns = itertools.count(os.getpid())
_connections: dict[tuple[int, str], Connection] = {}
"""By the process that made them, as one that is forked must not speak on its parent's."""


def _connection(socket: str) -> Connection:
    key = (os.getpid(), socket)
    if key not in _connections:
        _connections[key] = Client(socket, family="AF_UNIX")
    return _connections[key]


def _forget(socket: str) -> None:
    connection = _connections.pop((os.getpid(), socket), None)
    if connection is not None:
        connection.close()


def _header(**values: Any) -> bytes:
    return json.dumps(values).encode()


def _send(connection: Connection, plane: npt.NDArray[Any]) -> None:
    """Flat: the length of a message is taken from a buffer's first dimension."""
    connection.send_bytes(np.ascontiguousarray(plane).reshape(-1).view(np.uint8).data)


def _receive(connection: Connection, plane: npt.NDArray[Any]) -> None:
    """Fill an array in C order with the next message; raises OSError unless that has its size."""
    try:
        received = connection.recv_bytes_into(plane.reshape(-1).view(np.uint8))
    except BufferTooShort as error:
        raise OSError(f"expected {plane.nbytes} bytes, got {len(error.args[0])}") from error
    if received != plane.nbytes:
        raise OSError(f"expected {plane.nbytes} bytes, got {received}")


# --- who answers ----------------------------------------------------------------------------------------------------


def serve(socket: str, device: str, ready: Callable[[], None]) -> None:
    """Answer on a Unix socket until the process is ended; ``ready`` is called when it may be asked.

    Whoever may open ``socket`` may ask: put it where only its owner can. Raises what PyTorch does if the device cannot
    be used at all.
    """
    import torch

    torch.set_num_threads(1)  # as in the workers, which need the cores
    torch.zeros(1, device=device)  # starts the device, or fails before anybody waits for it
    with Listener(socket, family="AF_UNIX", backlog=BACKLOG) as listener:
        ready()
        while True:
            connection = listener.accept()
            threading.Thread(target=_answer_all, args=(connection, device), daemon=True).start()


def _answer_all(connection: Connection, device: str) -> None:
    """Everything that comes over one connection, until its other end is closed or dies."""
    with connection:
        try:
            while True:
                asked = json.loads(connection.recv_bytes(HEADER_BYTES))
                grey = np.empty((asked.pop("height"), asked.pop("width")), np.uint8)
                _receive(connection, grey)
                _answer(connection, Network(**asked), grey, device)
        except (EOFError, ConnectionError):
            return


def _answer(connection: Connection, network: Network, grey: npt.NDArray[np.uint8], device: str) -> None:
    try:
        answer = infer(network, grey, device)
    except PhyssegError as error:
        told = _header(error=type(error).__name__, message=str(error.args[0]), hint=error.hint)
    except Exception as error:  # out of memory, a driver that failed: it goes to who asked, who knows what to do
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        told = _header(error="DeviceError", message=f"SuperPoint on {device} failed: {text[:2000]}", hint=None)
    else:
        connection.send_bytes(_header(threshold=answer.threshold))
        _send(connection, answer.probability)
        return
    connection.send_bytes(told)
