"""The page of `physseg report`: all that a run has come to, in one HTML file that asks nothing of the network.

What cannot be shown (no evaluation, a store that was moved, a checkpoint that a training has just removed) is said on
the page, and the rest is shown.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import localtime, strftime
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from ... import __version__
from ...common.atomic import atomic_write
from ...common.errors import PhyssegError
from ...common.html import chart, render
from ...common.settings import differing_keys
from ...common.text import counted, percent
from ...manifests.manifest import Manifest
from ...pipeline.store.reader import StoreReader
from ..evaluation.result import Evaluation, read_evaluation
from ..model.inference import InferenceSettings, class_texts
from ..prediction.load_run import LoadedRun, load_run
from ..runs.run_folder import RunFolder
from ..runs.run_log import read_log
from .figures import figures
from .pictures import Row, prediction_rows, structure_rows

CONFUSED = 3
"""Number of classes that are named as confused with a class, in each direction."""

T = TypeVar("T")
Log = Sequence[Mapping[str, Any]]


def write_report(run: Path, output: Path, *, step: int | Literal["best", "previous"] | None, device: Any) -> list[str]:
    """Write the page of a run, its pictures by the checkpoint of `step` (see `load_run`).

    Returns what could not be shown, as the page says it. Raises RunFolderError for what is no run folder, and
    CheckpointError for a checkpoint that was asked for and is not there.
    """
    folder, missing = RunFolder(run), list[str]()
    document = folder.read()
    training = document["training"] or {}  # none of imported weights

    def tried(what: str, make: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return make(*arguments)
        except (PhyssegError, OSError, torch.OutOfMemoryError) as error:
            missing.append(f"{what}: {error.args[0] if isinstance(error, PhyssegError) else error}")
            return None

    log: Log = tried("curves", read_log, folder.log_file) or []
    load = partial(load_run, run, step=step, device=device)
    loaded = load() if step is not None else tried("pictures", load)
    trained = loaded and training
    files = [*sorted(folder.path.glob("evaluation*.json")), *sorted(folder.evaluations.glob("*.json"))]
    results = [tried("a result", read_evaluation, path) for path in files if ".part-" not in path.name]
    text = render(
        Path(__file__).with_name("page") / "report.html",
        run=run.absolute(),
        training=training,
        best=tried("the best evaluation", folder.best),
        log=log,
        last={key: value for entry in log for key, value in entry.items()},
        charts=partial(charts, log),
        step=loaded.step if loaded else None,
        predictions=tried("predictions", _predictions, loaded, training) if trained else None,
        structures=tried("structure maps", _structures, loaded, training) if trained else None,
        results=_latest([found for found in results if found]),
        confusions=_confusions,
        figures=figures,
        settings={key: value for key, (_, value) in differing_keys({}, document).items()},
        time=lambda seconds: strftime("%Y-%m-%d %H:%M", localtime(seconds)),
        percent=percent,
        counted=counted,
        versions=f"report by physseg {__version__} with PyTorch {torch.__version__}",
        missing=missing,
    )
    atomic_write(output, text.encode())
    return missing


def _predictions(loaded: LoadedRun, training: Mapping[str, Any]) -> list[Row]:
    """Samples of the run's evaluation, or without one of its training."""
    settings, data = training["eval"], training["data"]
    source: Manifest | StoreReader
    if settings["manifest"]:
        source = Manifest.read(settings["manifest"])
    else:
        source = StoreReader(data["store"], ("labels",), root=data["images"], images=True)
    inference = InferenceSettings(windows=settings["windows"], classes_kept=settings.get("classes_kept"))
    texts = class_texts(loaded.model, source.vocabulary.classes)
    return list(prediction_rows(loaded.model, source, texts, inference, max_images=settings["max_images"]))


def _structures(loaded: LoadedRun, training: Mapping[str, Any]) -> list[Row]:
    structures, data = loaded.model.config.structures, training["data"]
    reader = StoreReader(data["store"], ("labels", *structures), root=data["images"], images=True)
    return list(structure_rows(loaded.model, reader, data["crop"])) if structures else []


def structures_of_run(run: Path) -> list[Row]:
    """Cached structures of a few of the samples that a run trained on, each beside what its model predicts."""
    return _structures(load_run(run), RunFolder(run).read()["training"])


def charts(log: Log, *prefixes: str) -> list[dict[str, Any]]:
    """A chart of each number whose name begins so; of those that are equal throughout (rates of groups), one."""
    names = dict.fromkeys(name for entry in log for name in entry if name.startswith(prefixes))
    lines: dict[tuple[tuple[int, float], ...], str] = {}
    for name in sorted(names, key="loss/total".__ne__):
        found = ((entry["step"], entry[name]) for entry in log if name in entry)
        lines.setdefault(tuple(pair for pair in found if isinstance(pair[1], float)), name)
    return [chart(name, points) for points, name in lines.items()]


def _latest(results: Sequence[Evaluation]) -> list[Evaluation]:
    """Of each manifest by each protocol the one of the latest step."""
    ordered = sorted(results, key=lambda found: found.source.get("step") or 0)
    return list({(one.source.get("manifest"), one.source.get("fingerprint")): one for one in ordered}.values())


def _confusions(found: Evaluation) -> list[dict[str, Any]]:
    """The classes that occur, the best first, each with what its pixels were called and what else was called so."""
    matrix, iou = found.confusion.matrix, found.confusion.iou()

    def largest(counts: Any, own: int) -> str:
        """The largest of these counts but a class's own, as shares of them all."""
        order = [index for index in np.argsort(-counts, kind="stable").tolist() if index != own and counts[index]]
        shares = [f"{found.classes[index]} {percent(counts[index] / counts.sum(), digits=1)}" for index in order]
        return ", ".join(shares[:CONFUSED])

    return [
        {
            "name": found.classes[index] + ("" if found.seen is None or found.seen[index] else " (unseen)"),
            "iou": float(iou[index]),
            "pixels": int(matrix[index].sum()),
            "called": largest(matrix[index], index),
            "others": largest(matrix[:, index], index),
        }
        for index in sorted(np.flatnonzero(matrix.any(axis=1)).tolist(), key=lambda index: -iou[index])
    ]
