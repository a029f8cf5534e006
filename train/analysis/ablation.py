"""Train the rows of a table with several seeds, evaluate them on several data sets: `physseg analyse ablation`.

A row is a list of settings on top of one configuration (table3.toml and table4.toml here are the paper's, edges.toml
and study.toml ours). Every run has a folder of its own, OUT/ROW/seed_K, and is nothing but a `physseg train` command
(`--dry-run` prints them), so the runs may as well be jobs of a cluster: what is there already is not computed again.
"""

import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...common.documents import parse_toml, parsing, read_text
from ...common.errors import ConfigError
from ...common.processes import available_cpus, environment, in_processes
from ...common.text import percent
from ...manifests.manifest import Manifest
from ..config import TrainConfig, load_config
from ..errors import AnalysisError
from ..evaluation.evaluate import evaluate_model
from ..evaluation.image_counts import ImageCounts
from ..evaluation.result import read_evaluation
from ..loop.loop import train
from ..model.device import choose_device
from ..model.inference import InferenceSettings
from ..prediction.load_run import load_run
from ..runs.run_folder import RunFolder

TABLES = ("table3", "table4", "edges", "study")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    settings: tuple[str, ...]
    """KEY=VALUE settings, as for `physseg train --set`."""
    against: str
    """Name of the row that this one is compared with: the first one, if the table does not say."""

    @property
    def folder(self) -> str:
        """The name without what file systems dislike: "+L^p +L^sac" is l-p-l-sac."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class Table:
    """A set of rows, each of which is compared with another."""

    title: str
    rows: tuple[Row, ...]
    harmonic: tuple[tuple[str, str], ...] = ()
    """Pairs of data sets; the harmonic mean of the scores on both is a score of its own."""

    @property
    def against(self) -> dict[str, str]:
        """Names of rows to those of the rows that they are compared with."""
        return {row.name: row.against for row in self.rows}

    def require(self, data: Collection[str]) -> None:
        """Raise AnalysisError where a harmonic mean is of another data set than these."""
        for pair in self.harmonic:
            if not set(pair) <= set(data):
                expected = f"{pair[0]}.parquet and {pair[1]}.parquet, for their harmonic mean"
                raise AnalysisError.mismatch(self.title, expected, ", ".join(data))


@dataclass(frozen=True, slots=True)
class Run:
    """One training: a row with one seed."""

    row: Row
    seed: int
    config: TrainConfig

    @property
    def folder(self) -> RunFolder:
        assert self.config.run is not None
        return RunFolder(self.config.run)


@dataclass(frozen=True, slots=True)
class Score:
    """One run on one data set."""

    row: str
    seed: int
    data: str
    """Name of the data set."""
    miou: float
    """mIoU of the run on the data set over the classes of the ground truth, in [0, 1]."""
    images: ImageCounts
    source: Mapping[str, Any]
    """What was evaluated how, as `Evaluation.source` has it."""
    boundary: ImageCounts | None = None
    """Pixels in the bands of Boundary IoU; None of a result of an earlier version."""


def read_table(name: str) -> Table:
    """A table of the paper by name, or one of your own from such a file. Raises AnalysisError for neither."""
    file = Path(__file__).with_name(f"{name}.toml") if name in TABLES else Path(name)
    if not file.exists():
        raise AnalysisError(f"{name}: no such table or file", hint=f"Tables: {', '.join(TABLES)}.")
    fault, hint = f"{name}: not a table of rows", 'It needs title = "...", and [[rows]] with name and set.'
    document = parse_toml(read_text(file, AnalysisError, "a table of rows"), AnalysisError, fault, hint)
    with parsing(AnalysisError, fault, hint):
        first, title = document["rows"][0], str(document["title"])
        rows = tuple(
            Row(str(row["name"]), tuple(map(str, row["set"])), str(row.get("against", first["name"])))
            for row in document["rows"]
        )
        harmonic = tuple((str(one), str(other)) for one, other in document.get("harmonic", ()))
    folders = [row.folder for row in rows]
    if len(rows) < 2 or len(set(folders)) < len(rows) or not all(folders):
        raise AnalysisError.mismatch(name, "two rows or more with names of their own", [row.name for row in rows])
    names = [row.name for row in rows]
    if unknown := [row for row in rows if row.against not in names]:
        raise AnalysisError.mismatch(f"{name}: {unknown[0].name}", "`against` to name a row", unknown[0].against)
    return Table(title, rows, harmonic)


def plan(table: Table, config: Path | str, *, out: Path, seeds: Sequence[int], settings: Sequence[str]) -> list[Run]:
    """All runs, seed by seed. Raises ConfigError, which names the row, where its settings give no configuration."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise AnalysisError.mismatch("seeds", "different numbers", list(seeds))
    runs = []
    for seed in seeds:
        for row in table.rows:
            overrides = [*settings, *row.settings, f"seed={seed}"]
            try:
                built = load_config(config, overrides, run=out / row.folder / f"seed_{seed}")
            except ConfigError as error:
                raise error.prefixed(f"row {row.name!r}") from error
            runs.append(Run(row, seed, built))
    return runs


def run_all(
    runs: Sequence[Run],
    manifests: dict[str, Manifest],
    *,
    windows: bool,
    say: Callable[[str], None],
    progress: bool = True,
) -> list[Score]:
    """Train and evaluate whatever is not there yet, in order, and give every score."""
    scores = []
    for number, run in enumerate(runs, start=1):
        say(f"[{number}/{len(runs)}] {run.row.name}, seed {run.seed}: {run.folder.path}")
        result = train(run.config, progress=progress)
        if not result.finished:
            hint = "re-running the command resumes"
            raise AnalysisError(f"{run.folder.path}: stopped at step {result.step}", hint=hint)
        for name, manifest in manifests.items():
            scores.append(_score(run, name, manifest, windows=windows, progress=progress))
            say(f"  {run.row.name}, seed {run.seed}, {name}: mIoU {percent(scores[-1].miou)}")
    return scores


def run_at_once(runs: Sequence[Run], manifests: dict[str, Manifest], jobs: int, **options: Any) -> list[Score]:
    """As `run_all`, by processes that share runs and CPUs.

    Raises what the first of them raises, and AnalysisError where one was killed; the others save and end.
    """
    hint = "usually memory: try fewer --jobs; re-running the command resumes"
    death = AnalysisError("a process that trained was killed", hint=hint)
    work = partial(run_all, manifests=manifests, progress=False, **options)
    shares = in_processes(work, [runs[part::jobs] for part in range(jobs)], workers=jobs, death=death)
    with environment({"OMP_NUM_THREADS": str(max(1, available_cpus() // jobs))}):
        scores = [score for share in shares for score in share]
    order = [(run.row.name, run.seed) for run in runs]
    return sorted(scores, key=lambda score: order.index((score.row, score.seed)))


def _score(run: Run, name: str, manifest: Manifest, *, windows: bool, progress: bool) -> Score:
    folder = run.folder.evaluations
    stem = f"{name}-{'windows' if windows else 'whole'}-{manifest.fingerprint[:12]}-step_{run.config.steps:08d}"
    file = folder / f"{stem}.json"
    if not file.exists():
        loaded = load_run(run.folder.path, device=choose_device(run.config.device))
        evaluate_model(
            loaded.model,
            manifest,
            trained_on=loaded.classes,
            settings=InferenceSettings(windows=windows),
            progress=progress,
            source={"run": str(run.folder.path), "step": loaded.step},
        ).write(folder, stem)
    found = read_evaluation(file)
    assert found.images is not None  # a file always has them
    return Score(run.row.name, run.seed, name, found.confusion.miou(), found.images, found.source, found.boundary)


def command(run: Run, config: Path | str, settings: Sequence[str]) -> str:
    """The command line that trains this run by itself."""
    words = ["physseg", "train", str(config), "--out", str(run.folder.path)]
    for text in (*settings, *run.row.settings, f"seed={run.seed}"):
        words += ["--set", text]
    return shlex.join(words)
