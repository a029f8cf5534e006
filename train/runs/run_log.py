"""The log of a run: one JSON object per line for programs, TensorBoard for the eye, the same numbers in both.

Every line has `event`, `step` and `time` (seconds since 1970). A run that resumes from step s first drops what was
logged after s, in both places: those steps are about to be computed again.
"""

import json
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from ...common.atomic import atomic_write
from ...common.documents import parsing
from ...common.images import encode_jpeg
from ...common.regular_files import read_regular
from ..errors import RunFolderError
from .tensor_files import writing_to


class RunLog:
    """Appends to `jsonl` and `tensorboard`; a context manager."""

    def __init__(self, jsonl: Path, tensorboard: Path, *, start_step: int, wandb: Any = None) -> None:
        """Open the log of a run that has taken `start_step` steps; `wandb`: see weights_and_biases.py."""
        if jsonl.exists():
            kept = [line for line, entry in _lines(jsonl) if entry["step"] <= start_step]
            atomic_write(jsonl, "".join(kept).encode())
        jsonl.parent.mkdir(parents=True, exist_ok=True)
        self._file = jsonl.open("a", encoding="utf-8")
        self._wandb, self._hook = wandb, threading.excepthook
        threading.excepthook = self._on_thread_error
        self._folder = tensorboard
        with writing_to(tensorboard):
            self._board = SummaryWriter(str(tensorboard), purge_step=start_step + 1 if start_step else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers such as `loss/total`, under `event: "step"` and as TensorBoard scalars."""
        self.event("step", step, **values)
        with writing_to(self._folder):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log({"step": step, **values})

    def picture(self, step: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Log a picture (H, W, 3) RGB; TensorBoard only. Its own PNGs of photographs would be ten times as large."""
        height, width = image.shape[:2]
        shown = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encode_jpeg(image))
        writer: Any = self._board.file_writer
        with writing_to(self._folder):
            writer.add_summary(Summary(value=[Summary.Value(tag=name, image=shown)]), step)

    def event(self, name: str, step: int, **facts: Any) -> None:
        """Log anything else that happened; JSON only. Numbers that JSON cannot hold are written as text."""
        entry = {"event": name, "step": step, "time": round(time.time(), 3), **facts}
        with writing_to(Path(self._file.name)):
            self._file.write(json.dumps(_finite(entry), allow_nan=False) + "\n")
            self._file.flush()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        threading.excepthook = self._hook
        with writing_to(Path(self._file.name)):  # what could not be written is tried once more
            self._file.close()
        with writing_to(self._folder):
            self._board.close()
        if self._wandb:
            self._wandb.finish()

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """TensorBoard's writer, a thread, raises its error again where it is called next: no traceback besides."""
        if not type(error.thread).__module__.startswith("tensorboard."):
            self._hook(error)


class SilentLog(RunLog):
    """For the ranks that do not write."""

    def __init__(self) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def event(self, name: str, step: int, **facts: Any) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def read_log(jsonl: Path, event: str | None = None) -> list[dict[str, Any]]:
    """Entries of a run's log, in order; only those named `event` if given. A torn last line is left out."""
    return [entry for _, entry in _lines(jsonl) if event in (None, entry["event"])]


def evaluated_steps(jsonl: Path) -> set[int]:
    """Steps whose evaluation is in a run's log, which may not exist yet."""
    entries = read_log(jsonl, "step") if jsonl.exists() else []
    return {entry["step"] for entry in entries if "eval/pixel_accuracy" in entry}


def _lines(jsonl: Path) -> list[tuple[str, dict[str, Any]]]:
    """Whole lines and what they say; a run that was killed can leave half a line at the end."""
    found = []
    with parsing(RunFolderError, f"{jsonl}: not a run's log"):
        data = read_regular(jsonl)
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if line.endswith(b"\n"):
            with parsing(RunFolderError, f"{jsonl}: line {number} is none of a run's log", "delete the line"):
                entry = json.loads(line)
                if type(entry["step"]) is not int or type(entry["event"]) is not str:
                    raise ValueError(f"event {entry['event']!r}, step {entry['step']!r}")
                found.append((line.decode(), entry))
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
