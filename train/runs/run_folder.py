"""The run folder: everything one training run leaves behind, and the one place that knows its layout.

    RUN/config.json                  model settings, training settings, identity of the data, where the first weights
                                     came from, physseg's version
    RUN/vocabulary.txt               training classes, one per line, synonyms separated by commas
    RUN/checkpoints/step_00000100/   see checkpoint.py
    RUN/best.json                    the best evaluation during training: step, mIoU, on what
    RUN/log.jsonl                    see run_log.py
    RUN/tensorboard/                 the same numbers for `tensorboard --logdir RUN`, and pictures
    RUN/evaluation.json, .npz        the last evaluation during training
    RUN/evaluations/NAME-step_00000100.json, .npz   results of `physseg evaluate`

Imported weights make a run folder too: one whose training settings and data are null.
"""

import json
import math
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ... import __version__
from ...common.atomic import atomic_write, file_lock
from ...common.documents import parsing, read_document
from ...common.regular_files import read_regular
from ...common.settings import differing_keys
from ...manifests.vocabulary import read_classes
from ..errors import RunFolderError

FORMAT = 1


class RunFolder:
    """Paths of a run, and its settings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.vocabulary_file = path / "vocabulary.txt"
        self.checkpoints = path / "checkpoints"
        self.log_file = path / "log.jsonl"
        self.tensorboard = path / "tensorboard"
        self.best_file = path / "best.json"
        self.evaluations = path / "evaluations"

    def exists(self) -> bool:
        return self.config_file.exists()

    def create(
        self,
        *,
        model: Mapping[str, Any],
        training: Mapping[str, Any] | None,
        data: Mapping[str, Any] | None,
        classes: tuple[str, ...] = (),
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a run: the vocabulary first, `config.json` last, each written atomically.

        `model` and `training` are settings (`to_dict`), `data` the identity of the data; the last two are None for
        imported weights. A detector of keypoints has no classes. `origin` says where the first weights come from.
        Raises RunFolderError for a folder that holds something else.
        """
        if self.path.exists() and not self.exists() and any(self.path.iterdir()):
            hint = "Choose another folder, or empty it."
            raise RunFolderError(f"{self.path}: not empty and not a run folder", hint=hint)
        if classes:
            atomic_write(self.vocabulary_file, ("\n".join(classes) + "\n").encode())
        document = {"format": FORMAT, "version": __version__, "model": model, "training": training}
        document |= {"data": data, "origin": origin}
        atomic_write(self.config_file, (json.dumps(document, indent=2) + "\n").encode())

    def begin_or_check(self, **settings: Any) -> None:
        """Begin a run of these settings (`create`), or refuse a folder of others (`check_same`)."""
        if self.exists():
            self.check_same(settings)
        else:
            self.create(**settings)

    def read(self) -> dict[str, Any]:
        """`config.json` as it is: keys format, version, model, training, data, origin."""
        fault = f"{self.path}: not a run folder: {self.config_file.name} is missing or unreadable"
        hint = "Name the folder that `physseg train` wrote (its --out)."
        return read_document(self.config_file, FORMAT, RunFolderError, fault, hint)

    def classes(self) -> tuple[str, ...]:
        """The training vocabulary."""
        return read_classes(self.vocabulary_file)

    def best(self) -> dict[str, Any] | None:
        """The best evaluation during training: step, miou, and what it is `of`; None before the first."""
        if not self.best_file.exists():
            return None
        hint = "delete it: the next evaluation during training writes it again"
        with parsing(RunFolderError, f"{self.best_file}: not the best evaluation of a run", hint):
            best: dict[str, Any] = json.loads(read_regular(self.best_file))
            if type(best["step"]) is not int or not math.isfinite(best["miou"]) or "of" not in best:
                raise ValueError(f"step {best['step']!r}, mIoU {best['miou']!r}")
            return best

    def set_best(self, best: Mapping[str, Any]) -> None:
        atomic_write(self.best_file, (json.dumps(best) + "\n").encode())

    def check_same(
        self,
        current: Mapping[str, Any],
        *,
        saved: Mapping[str, Any] | None = None,
        resumable: frozenset[str] = frozenset(),
    ) -> None:
        """Refuse to resume with other settings than the run began with.

        `current` has the settings by part (model, training, data), and so has `saved`, by default what `read` returns;
        `resumable` has the dotted keys that may differ. Raises RunFolderError with each other key and both values.
        """
        saved = self.read() if saved is None else saved
        different: dict[str, tuple[Any, Any]] = {}
        for part, prefix in (("model", "model"), ("training", ""), ("data", "store")):
            different |= differing_keys(saved[part], current[part], prefix)
        different = {key: pair for key, pair in different.items() if key not in resumable}
        if different:
            listed = "; ".join(f"{key}: run {ours!r}, now {theirs!r}" for key, (ours, theirs) in different.items())
            hint = "Go back to the run's settings (its config.json), or start another run in another folder."
            if any(key.startswith("store") for key in different):
                hint = "Go back to the run's store, or start another run in another folder."
                if different.get("store.layers.image", ("", ""))[0] is None:
                    hint = "Set data.images to the folder of the images: the run has read the files, not their JPEGs."
            elif resumable and all(saved is not None for saved, _ in different.values()):  # --set cannot say None
                settings = " ".join(f"--set {key}={_as_text(saved)}" for key, (saved, _) in different.items())
                hint = f"Resume with {settings}, or start another run in another folder."
            raise RunFolderError(f"{self.path}: this run was begun with other settings: {listed}", hint=hint)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one training process; the lock goes with the process. Raises RunFolderError.

        Folders made for a run that does not begin are removed.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise RunFolderError.mismatch(self.path, "a folder", "a file in the way", "Name another --out.") from error
        with ExitStack() as stack:
            stack.callback(_remove_empty, made)
            try:
                if not stack.enter_context(file_lock(self.path)):
                    tqdm.write(f"warning: {self.path}: no locks here; start no second training in it", file=sys.stderr)
            except BlockingIOError:
                hint = "Wait for it to end, stop it, or choose another folder."
                raise RunFolderError(
                    f"{self.path}: another process is training in this run folder", hint=hint
                ) from None
            yield


def _as_text(value: Any) -> str:
    """A saved setting as the VALUE of --set."""
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))


def _remove_empty(folders: Iterable[Path]) -> None:
    with suppress(OSError):  # whatever is in one is kept, and so are those around it
        for folder in folders:
            folder.rmdir()
