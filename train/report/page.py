"""The page of `physseg report`: all that a run has come to, in one HTML file that asks nothing of the network.

What cannot be shown (no evaluation, a store that was moved, a checkpoint that a training has just removed) is said on
the page, and the rest is shown.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import localtime, strftime
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from ... import __version__
from ...common.atomic import atomic_write
from ...common.errors import PhyssegError
from ...common.html import chart, render
from ...common.text import counted, percent
from ...manifests.manifest import Manifest
from ...pipeline.store.reader import StoreReader
from ..errors import RunFolderError
from ..evaluation.evaluate import usable_samples
from ..evaluation.metrics import Counts
from ..evaluation.result import Evaluation, read_evaluation
from ..model.inference import InferenceSettings, class_texts
from ..prediction.load_run import LoadedRun, load_run
from ..runs.run_folder import RunFolder
from ..runs.run_log import read_log
from .pictures import Row, few, labelled, prediction_rows, stored_samples, structure_rows

CHARTS = {
    "Losses": ("loss/",),
    "Learning rates": ("learning_rate/",),
    "Evaluations during training": ("eval/",),
    "Gradient and speed": ("gradient/", "speed/"),
}
"""Headings, and how the names of the numbers in the log begin that stand below them."""
CONFUSED = 3
"""Number of classes that are named as confused with a class, in each direction."""

T = TypeVar("T")
Log = Sequence[Mapping[str, Any]]


def write_report(run: Path, output: Path, *, step: int | Literal["best", "previous"] | None, device: Any) -> list[str]:
    """Write the page of a run, its pictures by the checkpoint of `step` (see `load_run`).

    Returns what could not be shown, as the page says it. Raises RunFolderError for what is no run folder.
    """
    folder, missing = RunFolder(run), _Missing()
    document = folder.read()
    log: Log = missing.unless_made("curves", lambda: read_log(folder.log_file)) or []
    best = missing.unless_made("the best evaluation", folder.best)
    results = _results(folder, missing)
    rows: dict[str, list[Row]] = {}
    if loaded := missing.unless_made("pictures", lambda: load_run(run, step=step, device=device)):
        for kind, make in (("predictions", _predictions), ("structure maps", _structures)):
            made = missing.unless_made(kind, lambda make=make: list(make(loaded, document["training"])))  # type: ignore[misc]
            rows[kind] = made or []
    text = render(
        Path(__file__).with_name("page") / "report.html",
        run=run.absolute(),
        tiles=_tiles(document, log, best),
        missing=missing.said,
        charts={title: _charts(log, prefixes) for title, prefixes in CHARTS.items()},
        rows={kind: [row.on_page() for row in each] for kind, each in rows.items()},
        step=loaded.step if loaded else None,
        of_training=not ((document["training"] or {}).get("eval") or {}).get("manifest"),
        results=[_result(one) for one in results],
        settings=list(_flat(document)),
        starts=_starts(log),
        versions=f"report by physseg {__version__} with PyTorch {torch.__version__}",
    )
    atomic_write(output, text.encode())
    return missing.said


class _Missing:
    """Collects what cannot be shown, and why."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def unless_made(self, what: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except (PhyssegError, OSError, torch.OutOfMemoryError) as error:
            self.said.append(f"{what}: {error.args[0] if isinstance(error, PhyssegError) else error}")
            return None


def _predictions(loaded: LoadedRun, training: Mapping[str, Any] | None) -> Iterator[Row]:
    """Samples of the run's evaluation, or without one of its training."""
    if training is None:
        raise RunFolderError("these weights were imported: there are no samples of theirs")
    evaluation, data = training["eval"], training["data"]
    if evaluation["manifest"]:
        manifest = Manifest.read(evaluation["manifest"])
        samples = labelled(manifest, few(usable_samples(manifest, evaluation["max_images"])))
        vocabulary = manifest.vocabulary
    else:
        reader = StoreReader(data["store"], ("labels",), root=data["images"])
        samples, vocabulary = stored_samples(reader, few(reader.usable.tolist())), reader.vocabulary
    settings = InferenceSettings(windows=evaluation["windows"], classes_kept=evaluation.get("classes_kept"))
    return prediction_rows(loaded.model, samples, vocabulary, class_texts(loaded.model, vocabulary.classes), settings)


def _structures(loaded: LoadedRun, training: Mapping[str, Any] | None) -> Iterator[Row]:
    model = loaded.model
    if training is None or model.structure_head is None:
        raise RunFolderError("the run predicts none (losses.lambda_p is 0, or the weights were imported)")
    data = training["data"]
    reader = StoreReader(data["store"], ("labels", *model.config.structures), root=data["images"])
    return structure_rows(model, reader, few(reader.usable.tolist()), data["crop"])


def _tiles(document: Mapping[str, Any], log: Log, best: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The large figures at the top: name and value."""
    steps, last = (
        (document["training"] or {}).get("steps"),
        {key: value for entry in log for key, value in entry.items()},
    )
    state, ends = "imported", [entry for entry in log if entry["event"] in ("start", "end", "non_finite")]
    if ends:
        stopped = f"stopped by {ends[-1]['stopped_by']}" if ends[-1].get("stopped_by") else "stopped"
        ended = "finished" if ends[-1].get("finished") else stopped
        state = {"start": "training, or killed", "end": ended}.get(ends[-1]["event"], "a loss was not finite")
    tiles = [("state", state), ("steps", f"{last.get('step', 0):,}" + (f" of {steps:,}" if steps else ""))]
    tiles += [(f"best mIoU, step {best['step']:,}", percent(best["miou"], digits=1))] if best else []
    for name, key in (("last mIoU", "eval/miou"), ("last Boundary IoU", "eval/boundary_iou")):
        tiles += [(name, percent(last[key], digits=1))] if isinstance(last.get(key), float) else []
    for name, key in (("last loss", "loss/total"), ("images/s", "speed/images_per_second")):
        tiles += [(name, f"{last[key]:.3g}")] if isinstance(last.get(key), float) else []
    return tiles


def _charts(log: Log, prefixes: tuple[str, ...]) -> list[dict[str, Any]]:
    """A chart of each number; of those that are equal throughout (rates of groups), one."""
    found_names = dict.fromkeys(name for entry in log for name in entry if name.startswith(prefixes))
    names = sorted(found_names, key="loss/total".__ne__)
    lines: dict[tuple[tuple[int, float], ...], str] = {}
    for name in names:
        found = ((entry["step"], entry[name]) for entry in log if name in entry)
        lines.setdefault(tuple(pair for pair in found if isinstance(pair[1], float)), name)
    kind = prefixes[0] if len(prefixes) == 1 else ""
    return [chart(name.removeprefix(kind), points) for points, name in lines.items()]


def _results(folder: RunFolder, missing: _Missing) -> list[Evaluation]:
    """The latest result on each manifest by each protocol: of the training itself, and of `physseg evaluate`."""
    latest: dict[Any, Evaluation] = {}
    for path in [*sorted(folder.path.glob("evaluation*.json")), *sorted(folder.evaluations.glob("*.json"))]:
        if ".part-" in path.name:
            continue
        found = missing.unless_made("a result", lambda path=path: read_evaluation(path))  # type: ignore[misc]
        if found is not None:
            key = found.source.get("manifest"), found.source.get("fingerprint")
            step = found.source.get("step") or 0
            if key not in latest or step >= (latest[key].source.get("step") or 0):
                latest[key] = found
    return list(latest.values())


def _result(found: Evaluation) -> dict[str, Any]:
    """What the page says of one result: its classes that occur, the best first."""
    matrix, names, boundary = found.confusion.matrix, found.classes, found.boundary_iou()
    iou, true = found.confusion.iou(), matrix.sum(axis=1)
    seen = found.seen or (True,) * len(names)
    averages = [f"mIoU {percent(found.confusion.miou())}"]
    averages += [f"Boundary IoU {percent(boundary)}"] if boundary is not None else []
    averages.append(f"pixel accuracy {percent(found.confusion.pixel_accuracy())}")
    step, windows = found.source.get("step"), (found.source.get("protocol") or {}).get("windows")
    how = "" if windows is None else ", with windows" if windows else ", whole images"
    return {
        "title": f"{found.source.get('dataset')}, step {step}: {counted(found.num_images, 'image')}{how}",
        "averages": ", ".join(averages),
        "absent": len(names) - int((true > 0).sum()),
        "classes": [
            {
                "name": names[index] + ("" if seen[index] else " (unseen)"),
                "iou": float(iou[index]),
                "pixels": int(true[index]),
                "called": _shares(matrix[index], index, names),
                "others": _shares(matrix[:, index], index, names),
            }
            for index in sorted(np.flatnonzero(true).tolist(), key=lambda index: -iou[index])
        ],
    }


def _shares(counts: Counts, own: int, names: Sequence[str]) -> str:
    """The largest of these counts but a class's own, as shares of them all."""
    total = counts.sum()
    largest = [index for index in np.argsort(-counts, kind="stable").tolist() if index != own and counts[index]]
    return ", ".join(f"{names[index]} {percent(counts[index] / total, digits=1)}" for index in largest[:CONFUSED])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings by their dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _starts(log: Log) -> list[list[str]]:
    """When the run was started or resumed: time, step, device, ranks, PyTorch."""
    keys = ("step", "device", "ranks", "torch", "samples")
    return [
        [strftime("%Y-%m-%d %H:%M", localtime(entry["time"])), *(str(entry.get(key, "-")) for key in keys)]
        for entry in log
        if entry["event"] == "start"
    ]
