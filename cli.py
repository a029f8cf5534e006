"""Command line of physseg: thin commands over the library; heavy imports happen inside the commands."""

import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import PhyssegError, __version__

if TYPE_CHECKING:
    from .manifests.checking import Checked, CheckSettings
    from .manifests.published import Found
    from .manifests.table import Manifest
    from .pipeline.frame import Frame
    from .train.model.inference import InferenceSettings

app = typer.Typer(
    name="physseg",
    help="Pseudo ground truth computed once, open-vocabulary segmenters trained on it many times.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
manifest_app = typer.Typer(
    help="Turn a data set folder into a table of samples with a vocabulary.", no_args_is_help=True
)
app.add_typer(manifest_app, name="manifest")
weights_app = typer.Typer(
    help="Pretrained CLIP weights: what there is, and fetching it. Nothing else uses a network.", no_args_is_help=True
)
app.add_typer(weights_app, name="weights")
superpoint_app = typer.Typer(
    help="Train and judge SuperPoint detectors; the package's own was made this way.", no_args_is_help=True
)
app.add_typer(superpoint_app, name="superpoint")
analyse_app = typer.Typer(help="What trained models say about the method: the paper's analyses.", no_args_is_help=True)
app.add_typer(analyse_app, name="analyse")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks instead of one-line errors.")] = False,
) -> None:
    """The usual order: manifest, preprocess, verify, inspect, train, evaluate, predict. `physseg demo` shows it all."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


# --- manifest -------------------------------------------------------------------------------------------------------

ImagesFolder = Annotated[Path | None, typer.Option("--images", help="Folder of the photographs (JPEG or PNG).")]
LabelsFolder = Annotated[Path | None, typer.Option("--labels", help="Folder of the label pictures, one id per pixel.")]
ManifestOut = Annotated[Path, typer.Option("--out", help="The manifest to write, e.g. coco.parquet.")]
ListFile = Annotated[
    Path | None, typer.Option("--list", help="Use only these samples: one file name without extension per line.")
]
Exif = Annotated[
    str, typer.Option(help="Images with an EXIF orientation: error (quarantine), apply (turn them) or ignore.")
]
MaxMegapixels = Annotated[float, typer.Option(help="Larger images are quarantined before they are decoded.")]
Threads = Annotated[int, typer.Option("--workers", min=0, help="Threads; 0 = the cores you may use.")]
AllowQuarantine = Annotated[bool, typer.Option("--allow-quarantine", help="Exit 0 although samples were quarantined.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the pixel share of every class.")]
Check = Annotated[
    bool, typer.Option("--check", help="Compare with what was published, say what is missing; --out may be left out.")
]
CheckedOut = Annotated[Path | None, typer.Option("--out", help="The manifest to write, e.g. ade150.parquet.")]
BenchmarkRoot = Annotated[Path, typer.Option("--root", help="Folder into which the archives were unpacked.")]
BenchmarkSplit = Annotated[str | None, typer.Option("--split", help="Default: the one that is evaluated.")]


@manifest_app.command("coco-stuff")
def manifest_coco_stuff(
    out: CheckedOut = None,
    root_folder: Annotated[Path | None, typer.Option("--root", help="Data set folder; needs --split.")] = None,
    split: Annotated[str | None, typer.Option(help="train2017 or val2017.")] = None,
    images: ImagesFolder = None,
    labels: LabelsFolder = None,
    stuff_json: Annotated[Path | None, typer.Option(help="Stuff annotations, painted first.")] = None,
    instances_json: Annotated[Path | None, typer.Option(help="Instance annotations, painted over the stuff.")] = None,
    write_labels: Annotated[Path | None, typer.Option(help="New folder for the label PNGs painted from JSON.")] = None,
    list_file: ListFile = None,
    name: Annotated[str, typer.Option(help="Name of the data set in the manifest.")] = "coco-stuff",
    exif: Exif = "error",
    max_megapixels: MaxMegapixels = 100.0,
    workers: Threads = 0,
    allow_quarantine: AllowQuarantine = False,
    verbose: Verbose = False,
    check: Check = False,
) -> None:
    """COCO-Stuff, 171 classes, from `stuffthingmaps` PNGs or from the stuff and instances JSON files.

    Exit code 3: the manifest is written, but some samples were quarantined.
    """
    from .manifests import published

    settings = _check_settings(exif, max_megapixels, workers, out, check=check)
    found = published.coco_stuff(
        keep=out is not None,
        root=root_folder,
        split=split,
        images=images,
        labels=labels,
        stuff_json=stuff_json,
        instances_json=instances_json,
        write_labels=write_labels,
        listed=list_file,
        name=name,
        settings=settings,
    )
    if check:
        _finish_check(found, out, verbose=verbose, allow_quarantine=allow_quarantine, evaluated=False)
    elif out is not None:
        _finish_manifest(found.checked, out, verbose=verbose, allow_quarantine=allow_quarantine)


BENCHMARK_EXITS = "Exit code 1: something is missing, nothing is written; 3: some samples were quarantined."


def _benchmark_command(name: str, description: str) -> None:
    """Add `physseg manifest NAME` for a benchmark with one published layout."""

    def command(
        root_folder: BenchmarkRoot,
        out: CheckedOut = None,
        split: BenchmarkSplit = None,
        list_file: ListFile = None,
        exif: Exif = "ignore",
        max_megapixels: MaxMegapixels = 100.0,
        workers: Threads = 0,
        allow_quarantine: AllowQuarantine = False,
        verbose: Verbose = False,
        check: Check = False,
    ) -> None:
        from .manifests import published

        found = published.benchmark(
            name,
            root=root_folder,
            split=split,
            listed=list_file,
            check=check,
            settings=_check_settings(exif, max_megapixels, workers, out, check=check),
        )
        _finish_benchmark(found, out, check=check, verbose=verbose, allow_quarantine=allow_quarantine)

    command.__doc__ = f"{description}\n\n{BENCHMARK_EXITS}"
    manifest_app.command(name)(command)


_benchmark_command("ade20k-150", "ADE20K, 150 classes, from ADEChallengeData2016.")
_benchmark_command("ade20k-847", "ADE20K, 847 classes, from the full release 2021_17_01; short side capped at 512 px.")
_benchmark_command("pascal-voc-20", "Pascal VOC 2012, 20 classes, background ignored, from VOCdevkit/VOC2012.")
_benchmark_command("pascal-voc-20b", "Pascal VOC 2012, 20 classes and background (prompted by 39 other words).")


def _context_command(name: str, description: str) -> None:
    """Likewise for Pascal Context, whose labels come in several forms."""

    def command(
        root_folder: BenchmarkRoot,
        out: CheckedOut = None,
        split: BenchmarkSplit = None,
        form: Annotated[
            str | None,
            typer.Option(
                help="What the label files are: json (the merged file), mat, painted (PNGs made from json), ids "
                "(0..58, 255), colours (the older form). Default: json if it is there, else mat."
            ),
        ] = None,
        labels: Annotated[Path | None, typer.Option(help="Folder of the label files; needs --form.")] = None,
        write_labels: Annotated[Path | None, typer.Option(help="New folder for PNGs painted from the JSON.")] = None,
        list_file: ListFile = None,
        exif: Exif = "ignore",
        max_megapixels: MaxMegapixels = 100.0,
        workers: Threads = 0,
        allow_quarantine: AllowQuarantine = False,
        verbose: Verbose = False,
        check: Check = False,
    ) -> None:
        from .manifests import published

        found = published.benchmark(
            name,
            root=root_folder,
            split=split,
            form=form,
            labels=labels,
            write_labels=write_labels,
            listed=list_file,
            check=check,
            keep=out is not None,
            settings=_check_settings(exif, max_megapixels, workers, out, check=check),
        )
        _finish_benchmark(found, out, check=check, verbose=verbose, allow_quarantine=allow_quarantine)

    command.__doc__ = f"{description}\n\n{BENCHMARK_EXITS}"
    manifest_app.command(name)(command)


_context_command("pascal-context-59", "Pascal Context, 59 classes, from VOCdevkit/VOC2010 and trainval_merged.json.")
_context_command("pascal-context-459", "Pascal Context, 459 classes, from VOCdevkit/VOC2010 and its trainval/*.mat.")


@manifest_app.command("folder")
def manifest_folder(
    out: ManifestOut,
    classes: Annotated[Path, typer.Option(help="One class per line, in the order of their ids; commas: synonyms.")],
    root_folder: Annotated[
        Path | None, typer.Option("--root", help="Folder with images/ and labels/, or images/SPLIT and labels/SPLIT.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Name of the split, e.g. train.")] = None,
    images: ImagesFolder = None,
    labels: LabelsFolder = None,
    ignore: Annotated[
        list[int] | None,
        typer.Option(help="Id that means no class; repeatable. Default 255, or 65535 where classes reach 255."),
    ] = None,
    first_id: Annotated[int, typer.Option(min=0, help="Id of the class in line 1, e.g. 1 where 0 is unlabelled.")] = 0,
    list_file: ListFile = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set. Default: the folder's name.")] = None,
    exif: Exif = "error",
    max_megapixels: MaxMegapixels = 100.0,
    workers: Threads = 0,
    allow_quarantine: AllowQuarantine = False,
    verbose: Verbose = False,
) -> None:
    """A data set of your own: images, label pictures (8-bit, palette or 16-bit PNG) and a class file.

    Exit code 3: the manifest is written, but some samples were quarantined.
    """
    from .manifests import build

    checked = build.folder(
        classes=classes,
        root=root_folder,
        split=split,
        images=images,
        labels=labels,
        ignore=ignore or (),
        first_id=first_id,
        listed=list_file,
        name=name,
        settings=_check_settings(exif, max_megapixels, workers, out),
    )
    _finish_manifest(checked, out, verbose=verbose, allow_quarantine=allow_quarantine)


def _check_settings(
    exif: str, max_megapixels: float, workers: int, out: Path | None, *, check: bool = False
) -> "CheckSettings":
    from .manifests.checking import CheckSettings
    from .manifests.errors import ManifestError

    if out is None and not check:
        raise typer.BadParameter("expected --out FILE for a manifest, --check to look at the archive, or both")
    if out is not None and out.is_dir():
        raise ManifestError(
            f"{out}: expected a file to write, got a folder", hint=f"e.g. --out {out / 'train.parquet'}"
        )
    return CheckSettings(exif=exif, max_megapixels=max_megapixels, workers=workers)


def _finish_manifest(
    checked: "Checked", out: Path, *, verbose: bool, allow_quarantine: bool, evaluated: bool = False
) -> None:
    from .manifests.report import summary_lines

    checked.manifest.write(out)
    next_step = f"physseg evaluate RUN {out}" if evaluated else ""
    for line in summary_lines(checked, out, verbose=verbose, next_step=next_step):
        typer.echo(line)
    _exit_if_quarantined(checked, allow_quarantine)


def _exit_if_quarantined(checked: "Checked", allow_quarantine: bool) -> None:
    if checked.manifest.quarantined and not allow_quarantine:
        typer.echo(f"exit code {QUARANTINE_EXIT} for quarantined samples; --allow-quarantine accepts them", err=True)
        raise typer.Exit(QUARANTINE_EXIT)


def _finish_benchmark(found: "Found", out: Path | None, *, check: bool, verbose: bool, allow_quarantine: bool) -> None:
    if check:
        _finish_check(found, out, verbose=verbose, allow_quarantine=allow_quarantine)
    elif out is not None:
        _finish_manifest(found.checked, out, verbose=verbose, allow_quarantine=allow_quarantine, evaluated=True)


def _finish_check(
    found: "Found", out: Path | None, *, verbose: bool, allow_quarantine: bool, evaluated: bool = True
) -> None:
    """Say what the archive lacks; a manifest is written of a complete one only."""
    from .manifests.report import archive_lines, summary_lines

    if out is not None and not found.faults:
        for line in archive_lines(found):
            typer.echo(line)
        _finish_manifest(found.checked, out, verbose=verbose, allow_quarantine=allow_quarantine, evaluated=evaluated)
        return
    for line in (*summary_lines(found.checked, None, verbose=verbose), *archive_lines(found)):
        typer.echo(line)
    if found.faults:
        raise typer.Exit(1)
    _exit_if_quarantined(found.checked, allow_quarantine)


# --- preprocess, verify, inspect ------------------------------------------------------------------------------------

QUARANTINE_EXIT = 3
"""Exit code of a run that ended well but put samples into quarantine."""

Store = Annotated[Path, typer.Argument(help="Folder of the Zarr store, e.g. coco.zarr.")]
Root = Annotated[str | None, typer.Option(help="Where the manifest's paths start, if the data set was moved.")]


@app.command()
def preprocess(
    manifest: Annotated[Path, typer.Argument(help="Manifest written by `physseg manifest`.")],
    store: Store,
    structures: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: canny, mask_edges, sift, superpoint. Default: the first three, or the store's."
        ),
    ] = None,
    set_option: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME.OPTION=VALUE", help="An extractor's setting, e.g. canny.low=50. Repeatable."
        ),
    ] = None,
    short_edge: Annotated[int | None, typer.Option(help="Shortest edge of the frame, px. Default 384.")] = None,
    max_long_edge: Annotated[
        int | None, typer.Option(help="Limit of the longest edge, px. Default: twice the short edge.")
    ] = None,
    canvas: Annotated[
        int | None, typer.Option(help="Side of the square canvas, px. Default: the long edge limit.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes. Default: the cores you may use.")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="local (processes on this machine), sync (this process), or tcp://HOST:PORT of Dask's.")
    ] = "local",
    memory_limit: Annotated[str | None, typer.Option(help="Per worker, e.g. 2GiB. Default: memory / workers.")] = None,
    root: Root = None,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Compute shards with quarantined samples again.")
    ] = False,
    allow_quarantine: AllowQuarantine = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, and its cost, and stop.")
    ] = False,
    log: Annotated[Path | None, typer.Option(help="JSON lines, one per shard. Default: STORE.log.jsonl.")] = None,
) -> None:
    """Compute structure maps and patch counts of every image into a Zarr store.

    Run the same command again to resume after any interruption, or with more structures to add them. Quarantined
    samples are named, and end the run with exit code 3.
    """
    from .manifests.table import Manifest
    from .pipeline import run
    from .pipeline.report import describe_job, describe_run
    from .pipeline.store import beside

    job = run.prepare(
        Manifest.read(manifest, root=root),
        store,
        structures=_names(structures) if structures is not None else None,
        settings=_settings(set_option or []),
        frame=_frame(short_edge, max_long_edge, canvas),
        retry_quarantined=retry_quarantined,
    )
    for line in describe_job(job, workers=1 if scheduler == "sync" else workers, measure=dry_run):
        typer.echo(line)
    if dry_run:
        return
    try:
        report = run.execute(
            job,
            scheduler=scheduler,
            workers=workers,
            memory_limit=_bytes(memory_limit),
            log=log or beside(store, ".log.jsonl"),
        )
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from what is committed", err=True)
        raise
    for line in describe_run(report, store):
        typer.echo(line)
    if report.quarantine and not allow_quarantine:
        raise typer.Exit(QUARANTINE_EXIT)


@app.command()
def verify(
    store: Store,
    repair: Annotated[bool, typer.Option("--repair", help="Compute what is faulty again, and nothing else.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes for --repair.")] = None,
    scheduler: Annotated[str, typer.Option(help="As in preprocess, for --repair.")] = "local",
    root: Root = None,
) -> None:
    """Check every byte of a store against its commit records; names every fault and exits with 1 if there is one."""
    from .pipeline import run
    from .pipeline import verify as checking

    report = checking.verify(store)
    for line in checking.summary(report):
        typer.echo(line)
    if report.faults and repair:
        checking.repair(
            store,
            report,
            lambda manifest: run.execute(run.prepare(manifest, store), scheduler=scheduler, workers=workers),
            root=root,
        )
        report = checking.verify(store)
        typer.echo("after repair: " + "\n".join(checking.summary(report)))
    if report.faults:
        if not repair:
            typer.echo("mend it with: physseg verify STORE --repair", err=True)
        raise typer.Exit(1)


@app.command()
def inspect(
    store: Store,
    json_: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    measure: Annotated[int, typer.Option(min=0, help="Samples to read for the column `filled`.")] = 64,
    sample: Annotated[
        list[str] | None, typer.Option(metavar="ID|INDEX", help="Draw this sample; needs --out or --html. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the PNGs of the samples.")] = None,
    class_names: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Draw the patch weights of this class. Repeatable."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page, about 120 KB a sample.")] = None,
    max_samples: Annotated[int, typer.Option(min=1, help="Samples on the page, evenly spread over the store.")] = 200,
    root: Root = None,
) -> None:
    """Show what a store holds: a table, pictures of single samples, or a page to browse.

    Nothing is read of samples that are missing or quarantined, so a store may be looked at while it is computed.
    """
    if bool(sample) != bool(out or (sample and html)) or (class_names and not out):
        raise typer.BadParameter("--sample goes with --out DIR or --html FILE, --class with --out DIR")
    if not sample and not html:
        from .pipeline.inspection import summarise
        from .pipeline.inspection_report import summary_lines

        summary = summarise(store, measure=measure, root=root)
        typer.echo(summary.to_json() if json_ else "\n".join(summary_lines(summary)))
        return
    from .pipeline.sample_view import SampleViews, write_sample

    views = SampleViews(store, root=root)
    indices = [views.find(text) for text in sample or []]
    class_ids = [views.find_class(name) for name in class_names or []]
    if out:
        for index in indices:
            typer.echo(f"wrote {write_sample(views.view(index), out, class_ids)}")
    if html:
        from .pipeline.html_page import write_page
        from .pipeline.report import human

        page = write_page(store, html, samples=indices or None, max_samples=max_samples, root=root, progress=True)
        typer.echo(f"wrote {page.path}: {human(page.num_bytes)}, samples: {page.samples}")
        for problem in page.image_problems:
            typer.echo(f"warning: shown on grey, the image could not be read: {problem}", err=True)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _settings(assignments: list[str]) -> dict[str, dict[str, str]]:
    """["canny.low=50"] as {"canny": {"low": "50"}}; the extractors read the values."""
    settings: dict[str, dict[str, str]] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        name, dot, option = key.strip().partition(".")
        if not (equals and dot and name and option):
            raise typer.BadParameter(f"expected NAME.OPTION=VALUE as in canny.low=50, got {assignment!r}")
        settings.setdefault(name, {})[option] = value.strip()
    return settings


def _frame(short_edge: int | None, max_long_edge: int | None, canvas: int | None) -> "Frame | None":
    """The frame that was asked for; None if nothing was. The limits follow a short edge given alone."""
    from .pipeline.frame import Frame

    if short_edge is None and max_long_edge is None and canvas is None:
        return None
    short = Frame().short_edge if short_edge is None else short_edge
    long = 2 * short if max_long_edge is None else max_long_edge
    return Frame(short_edge=short, max_long_edge=long, canvas=long + -long % 8 if canvas is None else canvas)


def _bytes(text: str | None) -> int | None:
    from dask.utils import parse_bytes

    if text is None:
        return None
    try:
        return int(parse_bytes(text))
    except ValueError:
        raise typer.BadParameter(f"expected a size such as 2GiB, got {text!r}") from None


# --- train, evaluate, predict ---------------------------------------------------------------------------------------

Out = Annotated[Path | None, typer.Option("--out", help="Run folder; default: `run` of the configuration.")]
Device = Annotated[str, typer.Option(help='"auto" (CUDA if there is one), "cpu", "cuda:1", ...')]
Checkpoint = Annotated[
    str, typer.Option("--checkpoint", help="Step to load, or latest, or best (the highest mIoU during training).")
]
Prompts = Annotated[
    str, typer.Option(help='Ask with other templates, as many as in training: "single", "imagenet", or a file of them.')
]
SynonymRule = Annotated[
    str | None, typer.Option("--synonyms", help="first or mean of a class's synonyms. Default: as in training.")
]
Memory = Annotated[str, typer.Option(help="Most that prediction may hold besides the model and the image.")]
NoWindows = Annotated[
    bool, typer.Option("--no-windows", help="Look at the whole image only: five times faster, another protocol.")
]


def _step(text: str) -> int | Literal["best"] | None:
    if text in ("latest", "best"):
        return None if text == "latest" else "best"
    if not text.isdigit():
        raise typer.BadParameter(f"expected a step, latest or best, got {text!r}", param_hint="--checkpoint")
    return int(text)


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file, or a recipe: vit-b-16, vit-l-14, vit-h-14. See --example.")
    ] = None,
    out: Out = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")
    ] = None,
    stop_at: Annotated[int | None, typer.Option(min=1, help="Stop at this step; the schedule is not changed.")] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a commented configuration and exit.")] = False,
) -> None:
    """Train a segmenter on a store. The same command again goes on where the run stopped."""
    from .train.config import example_config, load_config

    if example:
        typer.echo(example_config(), nl=False)
        return
    if config is None:
        raise typer.BadParameter("name a TOML file, or print one with --example", param_hint="CONFIG")
    from .train.loop import train as run_training

    result = run_training(load_config(config, settings or (), run=out), stop_at=stop_at)
    if result.rank > 0:
        return  # the first rank speaks for all
    if result.finished and result.first_step == result.step:
        typer.echo(f"{result.run}: finished already, at step {result.step}")
    elif result.finished:
        typer.echo(f"{result.run}: finished at step {result.step}, {result.seconds:.0f} s")
    else:
        cause = f" by {result.stopped_by}" if result.stopped_by else ""
        typer.echo(f"{result.run}: stopped{cause} at step {result.step}; the same command goes on from there")


@app.command()
def evaluate(
    run: Annotated[
        Path, typer.Argument(help="Run folder, imported checkpoint or exported model. With --merge: a part.")
    ],
    manifests: Annotated[
        list[Path] | None, typer.Argument(help="Manifests to evaluate on, of any vocabulary. With --merge: more parts.")
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option("--benchmark", help="A published test set under --root, such as ade20k-847; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where results go; default: RUN/evaluations.")] = None,
    checkpoint: Checkpoint = "latest",
    max_images: Annotated[int | None, typer.Option(min=1, help="The first so many images only.")] = None,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="The I-th of N parts of the images, I from 1, for several jobs.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Add up the JSON files of all parts, given instead.")] = False,
    root: Annotated[
        str | None, typer.Option(help="Where the images are, if they moved; with --benchmark the archives' folder.")
    ] = None,
    no_windows: NoWindows = False,
    prompts: Prompts = "",
    synonyms: SynonymRule = None,
    memory: Memory = "2GiB",
    all_classes: Annotated[
        bool, typer.Option("--all-classes", help="Show every class, not the best and worst.")
    ] = False,
    device: Device = "auto",
) -> None:
    """mIoU, per-class IoU and pixel accuracy of a run, at the labels' own resolution, as the benchmarks are scored.

    On a cluster: `physseg evaluate RUN M.parquet --part $I/8` in eight jobs, then
    `physseg evaluate --merge RUN/evaluations/M-*.part-*-of-8.json`.
    """
    from .train.benchmark_table import COLUMNS, paper_table
    from .train.evaluate import evaluate_model, load_run
    from .train.evaluation import merge as merge_parts
    from .train.process import choose_device
    from .train.run_folder import RunFolder

    rows = 10**6 if all_classes else 10
    if merge:
        files = [run, *(manifests or [])]
        merged = merge_parts(files)
        typer.echo(f"{merged.source['dataset']} ({merged.num_images} images in {len(files)} parts)")
        typer.echo(merged.table(rows=rows))
        name = re.sub(r"\.part-\d+-of-\d+$", "", run.stem)
        typer.echo(f"written to {merged.write(out or run.parent, name)}")
        return
    chosen_part = _part(part)
    tables = _evaluated_tables(manifests or [], benchmarks or [], root)
    loaded = load_run(run, step=_step(checkpoint), device=choose_device(device), prompts=prompts, synonyms=synonyms)
    results = {}
    for name, manifest in tables.items():
        result = evaluate_model(
            loaded.model,
            manifest,
            trained_on=loaded.classes,
            max_images=max_images,
            part=chosen_part,
            settings=_inference_settings(memory, no_windows=no_windows),
            source={"run": str(run), "step": loaded.step, "weights": loaded.weights},
        )
        results[manifest.dataset] = result
        typer.echo(f"\n{name} ({result.num_images} images), {run} at step {loaded.step}")
        typer.echo(result.table(rows=rows))
        suffix = f".part-{chosen_part[0]}-of-{chosen_part[1]}" if chosen_part else ""
        file = f"{name}-step_{loaded.step:08d}{suffix}"
        typer.echo(f"written to {result.write(out or RunFolder(run).evaluations, file)}")
    if not chosen_part and results.keys() & COLUMNS.keys():
        typer.echo(f"\n{paper_table(run.name, results)}")


def _part(text: str | None) -> tuple[int, int] | None:
    """ "3/8" as (3, 8)."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise typer.BadParameter(f"expected I/N with I from 1 to N, got {text!r}", param_hint="--part")
    return int(found[1]), int(found[2])


def _evaluated_tables(manifests: list[Path], benchmarks: list[str], root: str | None) -> "dict[str, Manifest]":
    """Manifests by the name of their results."""
    from .manifests import published
    from .manifests.table import Manifest

    if not manifests and not benchmarks:
        raise typer.BadParameter("name a manifest, or a benchmark with --benchmark", param_hint="MANIFESTS")
    names = [*(path.stem for path in manifests), *benchmarks]
    if len(set(names)) < len(names):
        raise typer.BadParameter("two of one name would write the same results", param_hint="MANIFESTS")
    if unknown := [name for name in benchmarks if name not in published.TEST_SPLITS]:
        known = ", ".join(published.TEST_SPLITS)
        raise typer.BadParameter(f"{unknown[0]!r} is none of {known}", param_hint="--benchmark")
    if benchmarks and root is None:
        raise typer.BadParameter("--benchmark needs the folder of its archives", param_hint="--root")
    tables = {path.stem: Manifest.read(path, root=None if benchmarks else root) for path in manifests}
    for name in benchmarks:
        found = published.benchmark(name, root=Path(str(root)))
        if found.checked.manifest.quarantined:
            typer.echo(f"{name}: {len(found.checked.manifest.quarantined)} samples are quarantined", err=True)
        tables[name] = found.checked.manifest
    return tables


def _inference_settings(memory: str, *, no_windows: bool) -> "InferenceSettings":
    from .train.model.inference import InferenceSettings

    return InferenceSettings(windows=not no_windows, memory_bytes=_bytes(memory) or InferenceSettings().memory_bytes)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder, imported checkpoint or exported model.")],
    images: Annotated[list[Path], typer.Argument(help="JPEG or PNG files, or folders of them.")],
    classes: Annotated[str | None, typer.Option(help='What to look for, any words: "cat, dog, sofa".')] = None,
    classes_file: Annotated[
        Path | None, typer.Option(help="The same from a file: one class per line, synonyms separated by commas.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("predictions"),
    checkpoint: Checkpoint = "latest",
    no_windows: NoWindows = False,
    prompts: Prompts = "",
    synonyms: SynonymRule = None,
    memory: Memory = "2GiB",
    device: Device = "auto",
) -> None:
    """Find any words in any images: NAME_labels.png (class indices) and NAME_overlay.png (to look at)."""
    from .pipeline.draw import percent
    from .train.evaluate import load_run
    from .train.predict import find_images, predict_files, read_words
    from .train.process import choose_device

    vocabulary, files = read_words(classes, classes_file), find_images(images)
    loaded = load_run(run, step=_step(checkpoint), device=choose_device(device), prompts=prompts, synonyms=synonyms)
    failed = 0
    settings = _inference_settings(memory, no_windows=no_windows)
    for done in predict_files(loaded.model, files, vocabulary, out, settings=settings):
        if done.error:
            failed += 1
            typer.echo(f"error: {done.error}", err=True)
        else:
            shares = ", ".join(f"{name} {percent(share)}" for name, share in done.shares[:5])
            typer.echo(f"{done.overlay}: {shares}")
    if failed:
        typer.echo(f"{failed} of {len(files)} images could not be predicted", err=True)
        raise typer.Exit(1)


# --- analyses -------------------------------------------------------------------------------------------------------

JsonOut = Annotated[Path | None, typer.Option("--json", help="Write all numbers here.")]
MaxImages = Annotated[int | None, typer.Option(min=1, help="The first so many images only.")]


@analyse_app.command()
def ablation(
    table: Annotated[str, typer.Argument(help="table3, table4 (the paper's), or a TOML file of rows of your own.")],
    config: Annotated[str, typer.Argument(help="Configuration as for `physseg train`: a file or a recipe.")],
    manifests: Annotated[list[Path] | None, typer.Option("--eval", help="Evaluate on it; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs, and of the table.")] = Path("ablation"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas; every row trains with each.")] = "0,1,2",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting in all rows.")
    ] = None,
    no_windows: NoWindows = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the training commands and stop.")] = False,
) -> None:
    """Train every row of a table with several seeds, and print their mIoU with paired differences to the first row.

    The same command again goes on where it stopped; runs that were trained elsewhere into the same folders count.
    """
    from .manifests.table import Manifest
    from .manifests.whole_file import write_whole
    from .train.analysis import ablation as runs_of
    from .train.analysis import ablation_table

    if not all(text.strip().isdigit() for text in seeds.split(",")):
        raise typer.BadParameter(f"expected numbers as in 0,1,2, got {seeds!r}", param_hint="--seeds")
    chosen = runs_of.read_table(table)
    runs = runs_of.plan(
        chosen, config, out=out, seeds=[int(text) for text in seeds.split(",")], settings=settings or ()
    )
    if dry_run:
        for run in runs:
            typer.echo(runs_of.command(run, config, settings or ()))
        return
    if not manifests:
        raise typer.BadParameter("name a manifest to evaluate on", param_hint="--eval")
    tables = {path.stem: Manifest.read(path) for path in manifests}
    scores = []
    for score in runs_of.run_all(runs, tables, windows=not no_windows, say=typer.echo):
        typer.echo(f"  {score.data}: mIoU {100 * score.miou:.2f}")
        scores.append(score)
    found = ablation_table.cells(scores)
    text = ablation_table.markdown(chosen.title, found)
    write_whole(out / "ablation.md", text.encode())
    document = json.dumps(ablation_table.document(chosen.title, found), indent=1)
    write_whole(out / "ablation.json", (document + "\n").encode())
    typer.echo(f"\n{text}\nwritten to {out / 'ablation.md'} and ablation.json")


@analyse_app.command()
def similarity(
    source: Annotated[
        str, typer.Argument(help="A run or exported model; or with --clip, CLIP weights: a tag, a file.")
    ],
    vocabularies: Annotated[
        list[str] | None,
        typer.Argument(help="Published names (ade20k-150, ...), manifests, class files. Default: those of Table 1."),
    ] = None,
    to: Annotated[str, typer.Option(help="The vocabulary of training.")] = "coco-stuff",
    clip: Annotated[str | None, typer.Option(help="Preset of the weights, e.g. ViT-L-14-336.")] = None,
    prompts: Annotated[
        str, typer.Option(help='A template such as "a photo of a {}", "single", "imagenet", or a file of templates.')
    ] = "",
    synonyms: SynonymRule = None,
    json_file: JsonOut = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write every class's nearest class here.")] = None,
    device: Device = "auto",
) -> None:
    """How near test vocabularies are to the training classes, by CLIP's text encoder (Table 1).

    Hausdorff: of every test class its highest cosine to a training class, and of those the lowest. Symmetric: the same
    from both sides. Mean best: the mean instead of the lowest.

    For example: physseg analyse similarity openai --clip ViT-L-14-336 --csv neighbours.csv
    """
    from .manifests.whole_file import write_whole
    from .train.analysis import similarity as analysis
    from .train.analysis.encoders import find_encoder
    from .train.process import choose_device

    if synonyms not in (None, "first", "mean"):
        raise typer.BadParameter(f"expected first or mean, got {synonyms!r}", param_hint="--synonyms")
    chosen = [analysis.find_vocabulary(text) for text in vocabularies or analysis.TABLE_1]
    reference = analysis.find_vocabulary(to)
    encoder = find_encoder(
        source,
        clip=clip,
        prompts=prompts,
        synonyms=synonyms,  # type: ignore[arg-type]  # checked above
        device=choose_device(device),
    )
    found = analysis.similarities(encoder, chosen, reference)
    typer.echo(analysis.table(found))
    _write_json(json_file, analysis.document(found, encoder.origin))
    if csv_file:
        write_whole(csv_file, analysis.neighbours_csv(found).encode())


@analyse_app.command()
def oracle(
    run: Annotated[Path, typer.Argument(help="Run folder, imported checkpoint or exported model.")],
    manifest: Annotated[Path, typer.Argument(help="Manifest of the images, of any vocabulary.")],
    regions: Annotated[
        str, typer.Option(help="class: all pixels of a class in an image are one region; connected: its parts.")
    ] = "class",
    clip_weights: Annotated[
        str | None, typer.Option(help="Let pretrained CLIP name true regions as well: a tag or a file.")
    ] = None,
    clip: Annotated[str | None, typer.Option(help="Preset of --clip-weights. Default: the run's.")] = None,
    checkpoint: Checkpoint = "latest",
    max_images: MaxImages = None,
    root: Root = None,
    no_windows: NoWindows = False,
    memory: Memory = "2GiB",
    json_file: JsonOut = None,
    device: Device = "auto",
) -> None:
    """Where against what (Fig. 1): mIoU if the ground truth drew the regions, and if it named them.

    A model that gains much from true names knows "where" better than "what". The true regions are named by the model
    (highest mean probability) and by dense CLIP features: those of the run's own encoder, and with --clip-weights those
    of pretrained CLIP.
    """
    from .manifests.table import Manifest
    from .train.analysis import oracle as analysis
    from .train.analysis.encoders import ClipEncoder, clip_of_weights
    from .train.evaluate import load_run
    from .train.process import choose_device

    table = Manifest.read(manifest, root=root)
    loaded = load_run(run, step=_step(checkpoint), device=choose_device(device))
    config = loaded.model.config
    clips = {"CLIP as trained in the run": ClipEncoder(loaded.model, {"run": str(run)})}
    if clip_weights:
        preset = clip or config.clip
        clips[f"{preset} {Path(clip_weights).name}"] = clip_of_weights(
            clip_weights, preset, synonyms=config.synonyms, device=choose_device(device)
        )
    found = analysis.run_oracles(
        loaded.model,
        table,
        clips=clips,
        regions=regions,  # type: ignore[arg-type]  # checked there
        max_images=max_images,
        settings=_inference_settings(memory, no_windows=no_windows),
    )
    typer.echo(f"{run} at step {loaded.step} on {manifest}; regions: {regions}")
    typer.echo(analysis.table(found))
    facts = {"run": str(run), "step": loaded.step, "dataset": table.dataset, "manifest": table.fingerprint}
    facts |= {"regions": regions, "windows": not no_windows, "max_images": max_images}
    _write_json(json_file, facts | {"rows": analysis.document(found, table.evaluated_classes)})


@analyse_app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Two or more runs, the baseline first; NAME=RUN gives a caption.")],
    manifest: Annotated[Path, typer.Option(help="Manifest of the images.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures, index.html and compare.json.")] = Path("compare"),
    samples: Annotated[list[str] | None, typer.Option("--sample", help="Show this sample id; may be repeated.")] = None,
    most_changed: Annotated[
        int, typer.Option(min=1, help="Without --sample: show so many, those whose accuracy changed most.")
    ] = 8,
    checkpoint: Checkpoint = "latest",
    max_images: MaxImages = None,
    root: Root = None,
    no_windows: NoWindows = False,
    memory: Memory = "2GiB",
    json_file: JsonOut = None,
    device: Device = "auto",
) -> None:
    """Image, ground truth and the label maps of several runs side by side (Fig. 5 and 6).

    Changes are those of the last run against the first one, in pixel accuracy, for better or worse.

    For example: physseg analyse compare baseline=runs/a ours=runs/b --manifest ade150.parquet --no-windows
    """
    from .manifests.table import Manifest
    from .train.analysis import compare as analysis
    from .train.evaluate import load_run
    from .train.process import choose_device

    paths: dict[str, Path] = {}
    for text in runs:
        name, separator, path = text.partition("=")
        name, path = (name, path) if separator else (Path(text).name, text)
        if name in paths:
            raise typer.BadParameter(f"two runs are called {name!r}; say NAME=RUN", param_hint="RUNS")
        paths[name] = Path(path)
    if len(paths) < 2:
        raise typer.BadParameter("name two runs or more", param_hint="RUNS")
    table = Manifest.read(manifest, root=root)
    loaded = {
        name: load_run(path, step=_step(checkpoint), device=choose_device(device)) for name, path in paths.items()
    }
    pictured, scores = analysis.compare_runs(
        {name: run.model for name, run in loaded.items()},
        table,
        sample_ids=samples or (),
        most_changed=most_changed,
        max_images=max_images,
        settings=_inference_settings(memory, no_windows=no_windows),
    )
    facts = {name: {"run": str(paths[name]), "step": run.step} for name, run in loaded.items()}
    page = analysis.write_comparison(out, pictured, scores, facts, table)
    typer.echo(analysis.in_words(scores))
    typer.echo(f"{len(pictured)} pictures in {out}, all on one page: {page}")
    _write_json(json_file, json.loads((out / "compare.json").read_bytes()))


@analyse_app.command()
def structure(
    run: Annotated[
        Path | None, typer.Argument(help="Run folder of a training with structures; may be left out with --bsds.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Compare with this store's maps, of images not trained on.")
    ] = None,
    bsds: Annotated[
        Path | None, typer.Option(help="Compare with people's boundaries: BSDS500's folder of images and groundTruth.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of --bsds: train, val or test.")] = "val",
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, help="In px. Default: 0.0075 of the image's diagonal, as BSDS.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=32, help="Side of the head's windows, px. Default: the run's training crop.")
    ] = None,
    no_thin: Annotated[
        bool, typer.Option("--no-thin", help="With --store: leave edges as wide as they are, on both sides.")
    ] = False,
    canny_blur: Annotated[float, typer.Option(min=0.0, help="Sigma of the blur before Canny on --bsds, px.")] = 0.0,
    checkpoint: Checkpoint = "latest",
    max_images: MaxImages = None,
    root: Root = None,
    json_file: JsonOut = None,
    device: Device = "auto",
) -> None:
    """How well the structure head's maps match cached ones, or the boundaries that people draw.

    Precision, recall and F at the best threshold, within a tolerance; "mirrored" is what the same maps, mirrored, get
    by chance. With --bsds, Canny's F stands beside the head's. Not the benchmark's one-to-one matching: compare these
    numbers with each other, not with published ones.
    """
    from .train.analysis import structure as analysis
    from .train.evaluate import load_run
    from .train.process import choose_device

    if (store is None) == (bsds is None):
        raise typer.BadParameter("name either a store or BSDS500", param_hint="--store, --bsds")
    if store is not None and run is None:
        raise typer.BadParameter("name the run whose maps are to be compared with the store's", param_hint="RUN")
    loaded = load_run(run, step=_step(checkpoint), device=choose_device(device)) if run else None
    window_px = window or (analysis.training_crop(run) if run else 384)
    if store is not None and loaded is not None:
        title = f"{run} at step {loaded.step} against {store}"
        found = analysis.match_store(
            loaded.model,
            store,
            window_px=window_px,
            max_images=max_images,
            tolerance_px=tolerance,
            thinned=not no_thin,
            root=root,
        )
    else:
        title = f"against the people's boundaries of BSDS500 {split}"
        found = analysis.match_bsds(
            analysis.find_bsds(Path(str(bsds)), split, max_images),
            loaded.model if loaded else None,
            window_px=window_px,
            tolerance_px=tolerance,
            canny_blur=canny_blur,
        )
    typer.echo(analysis.table(found, f"{title}, {len(next(iter(found.values())).counts)} images"))
    document: dict[str, object] = {
        "run": str(run) if run else None,
        "step": loaded.step if loaded else None,
        "window_px": window_px,
        "store": str(store) if store else None,
        "bsds": split if bsds else None,
        "tolerance_px": tolerance,
        "thinned": not no_thin,
        "maps": {name: score.document() for name, score in found.items()},
    }
    _write_json(json_file, document)


def _write_json(path: Path | None, document: object) -> None:
    from .manifests.whole_file import write_whole

    if path:
        write_whole(path, (json.dumps(document, indent=1) + "\n").encode())


# --- models from elsewhere, models for elsewhere --------------------------------------------------------------------


@app.command("import-catseg")
def import_catseg(
    file: Annotated[Path, typer.Argument(help="Published checkpoint (CVPR 2024), for example model_base.pth.")],
    out: Annotated[Path, typer.Argument(help="Run folder to make.")],
    classes_file: Annotated[
        Path | None, typer.Option(help="Classes it was trained on, one per line. Default: COCO-Stuff's 171.")
    ] = None,
    prompts: Annotated[
        str, typer.Option(help="File of its templates, one per line; only needed for other numbers than 1 and 80.")
    ] = "",
    heads: Annotated[int, typer.Option(min=1, help="Attention heads of its aggregator; the file does not tell.")] = 4,
) -> None:
    """Turn a published CAT-Seg checkpoint into a run folder that evaluate, predict and export take.

    All sizes are read from the file; nothing in it is executed.
    """
    from .manifests.vocabulary import read_classes
    from .train.weights import catseg_import

    classes = read_classes(classes_file) if classes_file else None
    imported = catseg_import.import_catseg(file, out, classes=classes, prompts=prompts, num_heads=heads)
    for line in imported.lines():
        typer.echo(line)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to make: model.safetensors and model.json.")],
    checkpoint: Checkpoint = "latest",
) -> None:
    """Write a trained model for use elsewhere: weights as safetensors, everything else as readable JSON.

    In Python: physseg.load("OUT").segment("photo.jpg", ["cat", "dog"]). evaluate and predict take the folder, too.
    """
    from .train.evaluate import load_run
    from .train.weights.export import write_export

    loaded = load_run(run, step=_step(checkpoint))
    write_export(out, loaded.model, classes=loaded.classes, step=loaded.step, origin=loaded.origin)
    size = sum(path.stat().st_size for path in out.iterdir())
    typer.echo(f"{out}: step {loaded.step} of {run}, {size / 1e6:.1f} MB")


# --- weights --------------------------------------------------------------------------------------------------------


@weights_app.command("list")
def weights_list(
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON, with sources and hashes.")] = False,
) -> None:
    """The tags of pretrained CLIP weights, and which of them are in the cache ($PHYSSEG_CACHE or ~/.cache/physseg)."""
    from .train.weights.weights_cache import cache_folder
    from .train.weights.weights_fetch import listing, listing_lines

    entries = listing()
    if json_:
        typer.echo(json.dumps(entries, indent=1))
        return
    for line in listing_lines(entries):
        typer.echo(line)
    typer.echo(f"cache: {cache_folder()}")


@weights_app.command("fetch")
def weights_fetch(
    tag: Annotated[str, typer.Argument(help="As `physseg weights list` shows it, for example openai.")],
    clip: Annotated[
        str | None, typer.Option(help="Preset, where several have the tag: ViT-B-16, ViT-L-14-336.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Another place of the same file, such as a mirror.")] = None,
) -> None:
    """Fetch pretrained CLIP weights into the cache; the same command again resumes. Then: clip_weights = "TAG".

    Licences differ from tag to tag: see docs/weights.md.
    """
    from .train.weights.weights_cache import weights_folder
    from .train.weights.weights_fetch import fetch, find_tag

    found = find_tag(tag, clip)
    record, fetched = fetch(found, url=url)
    path = weights_folder(record.clip, record.tag) / record.file
    typer.echo(f"{path}: {'fetched from ' + record.url if fetched else 'is in the cache already'}")
    typer.echo(f"{record.num_bytes} bytes, sha256 {record.sha256}")


# --- superpoint -----------------------------------------------------------------------------------------------------

DetectorRun = Annotated[Path, typer.Argument(help="Folder of the training: weights, checkpoint, log. Resumes.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
TorchDevice = Annotated[str, typer.Option(help='"cpu", "cuda", "cuda:1", ...')]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures per step.")]
Precision = Annotated[str, typer.Option(help="bfloat16, or float32 where the CPU lacks it.")]


@superpoint_app.command("train-synthetic")
def superpoint_train_synthetic(
    run: DetectorRun,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the whole schedule.")] = 8400,
    seed: Seed = 0,
    full_width: Annotated[bool, typer.Option("--full-width", help="The published widths; for GPUs.")] = False,
    batch_size: BatchSize = 32,
    precision: Precision = "bfloat16",
    device: TorchDevice = "cpu",
) -> None:
    """Teach a new detector on generated shapes with exact keypoints. The same command again goes on."""
    from .structure_extractors.superpoint_training import commands

    commands.train_synthetic(
        run,
        steps=steps,
        seed=seed,
        full_width=full_width,
        batch_size=batch_size,
        precision=precision,
        device=device,
        say=typer.echo,
    )


@superpoint_app.command("textures")
def superpoint_textures(
    folder: Annotated[Path, typer.Argument(help="Folder for texture_00000.png, ...")],
    number: Annotated[int, typer.Option(min=1, help="How many.")] = 400,
    seed: Seed = 0,
) -> None:
    """Write generated pictures that no photographer owns, 240x320, to label and train on."""
    from .structure_extractors.superpoint_training.labelling import write_textures

    write_textures(folder, number=number, seed=seed, size=(240, 320))
    typer.echo(f"{folder}: {number} textures")


@superpoint_app.command("label")
def superpoint_label(
    images: Annotated[Path, typer.Argument(help="Folder of pictures, searched to any depth.")],
    out: Annotated[Path, typer.Argument(help="Label file to write, e.g. labels.npz. Resumes.")],
    weights: Annotated[Path | None, typer.Option(help="Detector to label with. Default: the package's own.")] = None,
    adaptation: Annotated[int, typer.Option(min=1, help="Homographies per picture.")] = 100,
    threshold: Annotated[float, typer.Option(help="Keypoints are more probable than this.")] = 0.015,
    max_points: Annotated[int, typer.Option(min=1, help="The best so many of each picture.")] = 600,
    precision: Precision = "bfloat16",
    device: TorchDevice = "cpu",
) -> None:
    """Label pictures by homographic adaptation: a detector's mean answer to many warped copies of each."""
    from .structure_extractors.superpoint import SHIPPED_WEIGHTS
    from .structure_extractors.superpoint_training.labelling import label

    labelled = label(
        images,
        out,
        weights or SHIPPED_WEIGHTS,
        adaptation=adaptation,
        threshold=threshold,
        max_points=max_points,
        precision=precision,
        device=device,
        say=typer.echo,
    )
    number = len(labelled.names)
    typer.echo(f"{out}: {number} pictures, {len(labelled.points) / number:.0f} keypoints each")


@superpoint_app.command("train")
def superpoint_train(
    run: DetectorRun,
    images: Annotated[Path, typer.Argument(help="Folder of the labelled pictures.")],
    labels: Annotated[Path, typer.Argument(help="Label file of `physseg superpoint label`.")],
    start: Annotated[Path | None, typer.Option(help="Weights to begin with. Default: the package's own.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the whole schedule.")] = 2000,
    shapes: Annotated[float, typer.Option(min=0, max=1, help="Share of generated shapes among the pictures.")] = 0.3,
    seed: Seed = 1,
    batch_size: BatchSize = 32,
    precision: Precision = "bfloat16",
    device: TorchDevice = "cpu",
) -> None:
    """Train a detector further on labelled pictures. The same command again goes on."""
    from .structure_extractors.superpoint_training import commands

    commands.train_labelled(
        run,
        images,
        labels,
        start=start,
        steps=steps,
        shapes=shapes,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        device=device,
        say=typer.echo,
    )


@superpoint_app.command("evaluate")
def superpoint_evaluate(
    weights: Annotated[Path | None, typer.Argument(help="Weights to judge. Default: the package's own.")] = None,
    sequence: Annotated[
        list[Path] | None, typer.Option(help="Folder of img1, img2, ... with H1to2p, ...; repeatable.")
    ] = None,
    photographs: Annotated[Path | None, typer.Option(help="Folder of pictures to warp and to make noisy.")] = None,
    per_kind: Annotated[int, typer.Option(min=1, help="Held-out pictures of each kind of shape.")] = 50,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    device: TorchDevice = "cpu",
) -> None:
    """Average precision on held-out shapes and repeatability on photographs, beside Harris, Shi-Tomasi, FAST, SIFT."""
    from .structure_extractors.superpoint_training import commands

    commands.evaluate_weights(
        weights,
        sequences=sequence or (),
        photographs=photographs,
        per_kind=per_kind,
        out=out,
        device=device,
        say=typer.echo,
    )


# --- demo -----------------------------------------------------------------------------------------------------------


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("physseg_demo"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps. Default: about three minutes of them.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of scenes, weights and order.")] = 0,
    images: Annotated[int, typer.Option(min=4, help="Training scenes; a quarter as many for validation.")] = 160,
) -> None:
    """The whole chain on a small generated data set: no download, no GPU, a few minutes.

    The same command again goes on where it stopped; with other settings it starts over.
    """
    from .train.demo.chain import DEFAULT_STEPS, DemoSettings, run_demo

    settings = DemoSettings(steps=steps or DEFAULT_STEPS, seed=seed, num_train=images, num_val=max(1, images // 4))
    run_demo(out, settings, say=typer.echo)


def main() -> None:
    """Entry point: runs the app, and turns our errors into one line, a hint and an exit code."""
    # Threads that spin while they wait for each other stall as soon as anything else runs: on two loaded cores, twelve
    # training steps took 12-19 s with threads that sleep and 29-38 s by default. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except (PhyssegError, OSError) as error:  # OSError: disk full, no permission; its text names the file
        if "--debug" in sys.argv:
            traceback.print_exc()
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, PhyssegError) else 1)


if __name__ == "__main__":
    main()
