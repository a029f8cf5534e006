"""The whole chain on a small generated data set, through the public commands, in a few minutes on a CPU.

Each command is printed before it runs and runs as a process of its own, so what the demo does anyone can type. The
folder keeps everything: re-running the command resumes where it stopped, other settings start over.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ... import __version__
from ...common.atomic import atomic_json, atomic_write
from ...common.errors import PhyssegError
from ...common.text import align, format_duration, percent
from ...manifests.manifest import Manifest
from ..evaluation.result import read_evaluation
from ..model.backbones.clip import Clip
from .page import MODELS, Stage, page_of_demo
from .results import Results, describe, measure
from .scenes import UNSEEN_THINGS, SceneFolders, write_scenes
from .zero_shot import packaged, score

DEFAULT_STEPS = 200
"""Steps of about 0.4 s on two CPU cores, taken twice."""

SHOWN = 6
"""Number of predictions on the page: the first of the split, not chosen ones."""

MARKER = "demo.json"
"""Holds the settings; its presence says that a folder is a demo's own."""

_OURS = (
    "scenes",
    "scenes_done",
    "train.parquet",
    "val.parquet",
    "train.zarr",
    "train.zarr.log.jsonl",
    "structures",
    "structures.html",
    "demo.toml",
    "run",
    "baseline",
    "predictions",
    "results.json",
    "demo.html",
)
"""All that a demo writes beside its marker: what starting over removes."""


class DemoError(PhyssegError, RuntimeError):
    """A step of the demo failed, or its folder is not a demo's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSettings:
    """What decides the demo's results."""

    steps: int = DEFAULT_STEPS
    """Number of training steps, of 8 crops each."""
    seed: int = 0
    """Seed of the scenes, the weights, the order and the augmentation."""
    num_train: int = 160
    num_val: int = 40

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("num_train", 1), ("num_val", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise DemoError.mismatch(f"demo: {name}", f"at least {least}", getattr(self, name))


def run_demo(out: Path, settings: DemoSettings, *, say: Callable[[str], None]) -> None:
    """Run the chain in the folder `out` and write `out/demo.html` and `out/results.json`.

    Raises:
        DemoError: `out` holds something else than a demo, or a step fails.
    """
    resumed = begin(out, settings, say=say)
    chain = Chain(out=out, say=say)
    scenes = SceneFolders(root=out / "scenes")
    what = f"write {settings.num_train} + {settings.num_val} scenes to {scenes.root}, seed {settings.seed}"
    counts = {"num_train": settings.num_train, "num_val": settings.num_val}
    chain.generate(what, partial(write_scenes, scenes.root, **counts, seed=settings.seed))
    for split in ("train", "val"):
        chain.manifest(scenes, split)
    store = out / "train.zarr"
    chain.command("preprocess", "preprocess", out / "train.parquet", store, "--short-edge", "192")
    chain.command("verify", "verify", store)
    chain.command("inspect: table", "inspect", store)
    samples = [text for index in range(min(3, settings.num_train)) for text in ("--sample", str(index))]
    chain.command("inspect: pictures", "inspect", store, *samples, "--out", out / "structures")
    chain.command("inspect: page", "inspect", store, "--html", out / "structures.html", "--num-images", "24")
    recipe = Path(__file__).with_name("demo.toml").read_text(encoding="utf-8")
    head = "# Written by `physseg demo`. `physseg train --example` explains every key."
    config = f"{head}\nseed = {settings.seed}\nsteps = {settings.steps}\n{recipe}"
    atomic_write(out / "demo.toml", config.encode())
    what, started = "zero-shot: the pretrained CLIP names the patches of the validation scenes", time.perf_counter()
    say(f"\n# {what}")
    val, clip = Manifest.read(out / "val.parquet"), packaged()
    names = val.vocabulary.class_names
    zero_shot = measure(score(clip, map(val.load, range(len(val))), names), names, UNSEEN_THINGS)
    chain.note("zero-shot", what, started)
    protocol = ("--no-windows", "--device", "cpu")
    pictures = sorted(scenes.images("val").iterdir())[:SHOWN]
    for title, (folder, changed) in MODELS.items():
        run, changes = out / folder, [word for text in changed for word in ("--set", text)]
        chain.command(f"train {title}", "train", out / "demo.toml", "--out", run, *changes)
        chain.command(f"evaluate {title}", "evaluate", run, out / "val.parquet", *protocol, "--all-classes")
        words = ("--classes-file", scenes.classes("val"), "--out", out / "predictions" / folder)
        chain.command(f"predict {title}", "predict", run, *pictures, *words, *protocol)
    models = {"zero-shot": zero_shot}
    for title, (folder, _) in MODELS.items():
        found = read_evaluation(out / folder / "evaluations" / f"val-step_{settings.steps:08d}.json")
        models[title] = measure(found.confusion, names, UNSEEN_THINGS)
    _finish(out, settings, chain.stages, models, clip, resumed=resumed, say=say)


def begin(out: Path, settings: DemoSettings, *, say: Callable[[str], None]) -> bool:
    """Make the folder ready: new, kept to resume (then True), or emptied of an earlier demo with other settings.

    Raises:
        DemoError: The folder holds anything but a demo. Nothing was touched.
    """
    marker = out / MARKER
    wanted = {"physseg": __version__, **asdict(settings)}
    if out.exists() and not out.is_dir():
        raise DemoError.mismatch(out, "a folder or nothing", "a file", "choose another --out")
    if marker.is_file():
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found == wanted:
            say(f"{out}: resuming the demo that is there, finished steps are kept; delete the folder to start over")
            return True
        say(f"{out}: holds a demo with other settings; starting over")
        for name in _OURS:
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif out.is_dir() and any(out.iterdir()):
        found = f"other files and no {MARKER}"
        raise DemoError.mismatch(out, "an empty folder or an earlier demo's", found, "choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    atomic_json(marker, wanted)
    return False


@dataclass(kw_only=True, slots=True)
class Chain:
    """The steps one by one, with the time that each took."""

    out: Path
    say: Callable[[str], None]
    stages: list[Stage] = field(default_factory=list)

    def generate(self, what: str, write: Callable[[], object]) -> None:
        """Draw the scenes, which `what` says in words, unless an earlier call finished that."""
        done = self.out / "scenes_done"
        self.say(f"\n# {what}")
        started = time.perf_counter()
        if not done.exists():
            write()
            done.touch()
        self.note("generate scenes", what, started)

    def manifest(self, scenes: SceneFolders, split: str) -> None:
        """Write SPLIT.parquet."""
        folders = ("--images", scenes.images(split), "--labels", scenes.labels(split))
        vocabulary = ("--classes-file", scenes.classes(split), "--split", split, "--name", "scenes")
        output = ("--out", self.out / f"{split}.parquet")
        self.command(f"manifest, {split}", "manifest", "folder", *folders, *vocabulary, *output)

    def command(self, title: str, *arguments: str | Path) -> None:
        """Run one public command in a process of its own; its output goes to the terminal."""
        words = [str(argument) for argument in arguments]
        shown = shlex.join(["physseg", *words])
        self.say(f"\n$ {shown}")
        started = time.perf_counter()
        program = [sys.executable, "-m", f"{__package__.partition('.')[0]}.cli"]
        if code := subprocess.run([*program, *words], check=False).returncode:
            hint = "its own message stands above; re-running the demo command resumes here"
            raise DemoError(f"demo: `{shown}` ended with exit code {code}, expected 0", hint=hint)
        self.note(title, shown, started)

    def note(self, title: str, command: str, started: float) -> None:
        """Keep the time that a step took since `started` and say it."""
        seconds = time.perf_counter() - started
        self.stages.append(Stage(title=title, command=command, seconds=seconds))
        self.say(f"  ({seconds:.1f} s)")


def _finish(
    out: Path,
    settings: DemoSettings,
    stages: Sequence[Stage],
    models: Mapping[str, Results],
    clip: Clip,
    *,
    resumed: bool,
    say: Callable[[str], None],
) -> None:
    """Scores, page and closing words."""
    zero_shot, baseline, both = models.values()
    seconds = sum(stage.seconds for stage in stages)
    decided = {"physseg": __version__, **asdict(settings)}
    results = {
        "settings": decided,
        "unit": "fraction",
        **_scores(both),
        "baseline": _scores(baseline),
        "zero_shot": _scores(zero_shot),
        "seconds": {stage.title: round(stage.seconds, 2) for stage in stages},
        "total_seconds": round(seconds, 2),
        "resumed": resumed,
    }
    atomic_json(out / "results.json", results)
    html = page_of_demo(out, settings=decided, stages=stages, resumed=resumed, models=models, clip=clip, shown=SHOWN)
    page = out / "demo.html"
    atomic_write(page, html.encode())

    rows = [("mIoU", "seen classes", "unseen classes")]
    rows += [
        (title, percent(of.seen.miou, digits=1), percent(of.unseen.miou, digits=1)) for title, of in models.items()
    ]
    rows.append(("chance", percent(both.seen.chance, digits=1), percent(both.unseen.chance, digits=1)))
    say("\n" + "\n".join(align(rows, right=(1, 2))))
    for sentence in describe(models):
        say(f"  {sentence}")
    say(f"\n{format_duration(seconds)}. All of it on one page: {page.resolve()}")


def _scores(of: Results) -> dict[str, Any]:
    return {"seen": asdict(of.seen), "unseen": asdict(of.unseen)}
