"""`physseg preprocess`, `verify` and `inspect`: compute a store, prove it, look at it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common.command_line.app import App, completed
from ..common.command_line.options import PRINT, AllowQuarantine, JsonOut, Root, parsed, show, to_write
from ..manifests.commands import QUARANTINE_EXIT

if TYPE_CHECKING:
    from .store.frame import Frame

app = App()
DEVICES = completed(lambda: ("cpu", "cuda"))  # part of a store, so that it is never what a machine has
Store = Annotated[str, typer.Argument(help="Folder or URL of the Zarr store, e.g. coco.zarr or s3://bucket/coco.zarr.")]
ManifestFile = Annotated[str, typer.Argument(help="Manifest written by `physseg manifest`; a file or a URL.")]
Structures = Annotated[
    str | None,
    typer.Option(help="Names with commas between (`physseg plugins`). Default: canny,mask_edges,sift, or the store's."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME.OPTION=VALUE", help="An extractor's setting, e.g. canny.low=50. Repeatable."),
]
ShortEdge = Annotated[int | None, typer.Option(help="Shortest edge of the frame, px. Default 384.")]
LongEdge = Annotated[int | None, typer.Option(help="Limit of the longest edge, px. Default: twice the short edge.")]
Canvas = Annotated[int | None, typer.Option(help="Side of the square canvas, px. Default: the long edge limit.")]


@app.command()
def preprocess(
    manifest: ManifestFile,
    store: Store,
    structures: Structures = None,
    set_option: SetOption = None,
    short_edge: ShortEdge = None,
    max_long_edge: LongEdge = None,
    canvas: Canvas = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Worker processes. Default: the cores you may use.")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="local (processes on this machine), sync (this process), or tcp://HOST:PORT of Dask's.")
    ] = "local",
    cluster: Annotated[
        str | None, typer.Option(help="slurm: --workers jobs, which jobqueue.slurm of Dask's configuration describes.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device of superpoint. Default: cpu, or the store's.", autocompletion=DEVICES)
    ] = None,
    part: Annotated[str | None, typer.Option(metavar="I/N", help="Compute the I-th of N shares, I from 1.")] = None,
    memory_limit: Annotated[str | None, typer.Option(help="Of a worker, e.g. 2GiB. Default: memory / workers.")] = None,
    root: Root = None,
    retry_quarantined: Annotated[bool, typer.Option(help="Compute quarantined samples again.")] = False,
    allow_quarantine: AllowQuarantine = False,
    dry_run: Annotated[bool, typer.Option(help="Print what would be done, and its cost, and stop.")] = False,
    log: Annotated[Path | None, typer.Option(help="JSON lines, one per shard. Default: STORE.log.jsonl.")] = None,
    dashboard: Annotated[bool, typer.Option(help="Serve Dask's dashboard on 127.0.0.1, print its address.")] = False,
) -> None:
    """Compute structure maps and patch counts into a store.

    Run the same command again to resume after any interruption, or with more structures to add them. Quarantined
    samples are named, and end the run with exit code 3.

    On a cluster: `--part I/N` in an array of jobs, `--cluster slurm`, or `--scheduler tcp://HOST:PORT`.
    """
    from ..common.text import Part, parse_bytes
    from ..manifests.manifest import Manifest
    from .run import run
    from .run.executors.choose import LOCAL, SLURM, SYNC, choose_executor
    from .run.report import describe_job, describe_run
    from .store.layout import beside

    if cluster not in (None, SLURM):
        raise typer.BadParameter(f"expected {SLURM}, got {cluster!r}", param_hint="--cluster")
    if cluster and scheduler != LOCAL:
        raise typer.BadParameter("starts a scheduler of its own: leave --scheduler out", param_hint="--cluster")
    memory = parsed(parse_bytes, memory_limit, "--memory-limit")
    executor = choose_executor(cluster or scheduler, workers=workers, memory_limit=memory, dashboard=dashboard)
    chosen_part = Part.parse(part) if part else None
    job = run.prepare(
        Manifest.read(manifest, root=root),
        store,
        structures=_names(structures),
        settings=_settings([*(set_option or []), *([f"superpoint.device={device}"] if device else [])]),
        frame=_frame(short_edge, max_long_edge, canvas),
        retry_quarantined=retry_quarantined,
        part=chosen_part,
        elsewhere=executor.elsewhere,
    )
    typer.echo("\n".join(describe_job(job)))
    if dry_run:
        from .cost.estimate import estimate_job
        from .cost.report import describe_cost

        estimate = estimate_job(job, workers=workers, in_one_process=executor.name == SYNC)
        for line in describe_cost(job, estimate):
            typer.echo(line)
        return
    try:
        report = run.execute(
            job,
            executor,
            log=log or beside(job.store, f".part-{chosen_part.number}.log.jsonl" if chosen_part else ".log.jsonl"),
        )
    except KeyboardInterrupt:
        typer.echo("interrupted; re-running the command resumes from what is committed", err=True)
        raise
    typer.echo("\n".join(describe_run(report, store)))
    if report.quarantine and not allow_quarantine:
        raise typer.Exit(QUARANTINE_EXIT)


@app.command()
def plan(
    manifest: ManifestFile,
    store: Annotated[str | None, typer.Argument(help="Store that is, or will be. Default: a new one.")] = None,
    structures: Structures = None,
    set_option: SetOption = None,
    short_edge: ShortEdge = None,
    max_long_edge: LongEdge = None,
    canvas: Canvas = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=10**6, help="Workers of the run, on any machines. Default: the cores here.")
    ] = None,
    target_hours: Annotated[float | None, typer.Option(hidden=True)] = None,
    images: Annotated[
        int | None, typer.Option("--num-images", min=1, help="Images to measure, in eights. Default: for ten seconds.")
    ] = None,
    root: Root = None,
    json_file: JsonOut = None,
) -> None:
    """Estimate time, bytes, files and memory of preprocess.

    And what an epoch of training reads. Computes some of the images on this machine, with as many processes at once as
    the run will have here, and leaves nothing behind. Start it where the run will be, or on a machine like those.
    """
    import tempfile
    import uuid
    from dataclasses import asdict

    from ..manifests.manifest import Manifest
    from .cost.estimate import estimate_job
    from .cost.report import describe_cost
    from .run import run
    from .run.report import describe_job

    if target_hours is not None:
        typer.echo("note: --target-hours is gone: the plan says the time on several numbers of workers", err=True)
    job = run.prepare(
        Manifest.read(manifest, root=root),
        store or f"{tempfile.gettempdir()}/physseg-{uuid.uuid4().hex[:12]}.zarr",
        structures=_names(structures),
        settings=_settings(set_option or []),
        frame=_frame(short_edge, max_long_edge, canvas),
    )
    estimate = estimate_job(job, workers=workers, images=images)
    lines = (*describe_job(job, name=None if store else manifest), *describe_cost(job, estimate))
    facts = {"samples": job.todo.samples_to_compute, "shards": len(job.todo.tasks), "reasons": job.todo.reasons}
    show("\n".join(lines), facts | {"estimate": asdict(estimate) if estimate else None}, json_file)


@app.command()
def verify(
    store: Store,
    repair: Annotated[bool, typer.Option(help="Compute what is faulty again, and nothing else.")] = False,
    images: Annotated[bool, typer.Option("--check-images", help="Hash every image and label file, too.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, max=4096, help="Worker processes for --repair.")] = None,
    scheduler: Annotated[str, typer.Option(help="Scheduler for --repair, as in preprocess.")] = "local",
    root: Root = None,
) -> None:
    """Check every byte of a store against its commit records; names every fault and exits with 1 if there is one."""
    from .run import verify as checking

    report = checking.verify(store, images=images, root=root)
    typer.echo("\n".join(checking.summary(report)))
    if report.faults and repair:
        from .run import run

        recompute = partial(run.preprocess, store=store, scheduler=scheduler, workers=workers)
        checking.repair(store, report, recompute, root=root)
        report = checking.verify(store, images=images, root=root)
        typer.echo("after repair: " + "\n".join(checking.summary(report)))
    if report.faults:
        if not repair:
            typer.echo("mend it with: physseg verify STORE --repair", err=True)
        raise typer.Exit(1)


@app.command()
def inspect(
    store: Store,
    json_file: JsonOut = None,
    measure: Annotated[int, typer.Option(min=0, help="Samples to read for the column `filled`.")] = 64,
    sample: Annotated[
        list[str] | None, typer.Option(metavar="ID|INDEX", help="Draw this sample; needs --out or --html. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the PNGs of the samples.")] = None,
    class_names: Annotated[
        list[str] | None, typer.Option("--class", help="Draw the patch weights of this class. Repeatable.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(callback=to_write, help="Page to write, self-contained, 110 to 150 KB a photograph.")
    ] = None,
    max_samples: Annotated[int, typer.Option("--num-images", min=1, help="Samples on the page, evenly spread.")] = 200,
    root: Root = None,
    cache: Annotated[Path | None, typer.Option(help="Keep what is read by URL in this local folder.")] = None,
) -> None:
    """Show what a store holds: a table, pictures of single samples, or a page to browse.

    Nothing is read of samples that are missing or quarantined, so a store may be looked at while it is computed.
    """
    if bool(sample) != bool(out or (sample and html)) or (class_names and not out):
        raise typer.BadParameter("--sample goes with --out DIR or --html FILE, --class with --out DIR")
    if sample or html:
        say = partial(typer.echo, err=json_file == PRINT)
        _write_pictures(store, sample or [], out, class_names or [], html, max_samples, root, cache, say)
        if json_file is None:
            return
    from dataclasses import asdict

    from .inspect.summary import summarise
    from .inspect.table import summary_lines

    summary = summarise(store, measure=measure, root=root)
    show("\n".join(summary_lines(summary)), asdict(summary), json_file)


def _write_pictures(
    store: str,
    samples: list[str],
    out: Path | None,
    class_names: list[str],
    html: Path | None,
    max_samples: int,
    root: str | None,
    cache: Path | None,
    say: Callable[[str], None],
) -> None:
    """What `inspect` writes: PNG files of the named samples, and the page."""
    from ..common.storage.content_cache import ContentCache
    from ..common.text import format_bytes
    from .inspect.html_page import write_page
    from .inspect.pictures import write_sample
    from .inspect.sample_view import SampleViews

    kept = ContentCache(cache) if cache else None
    views = SampleViews(store, root=root, cache=kept)
    indices = [views.find(text) for text in samples]
    class_ids = [views.find_class(name) for name in class_names]
    if out:
        for index in indices:
            say(f"wrote {write_sample(views.view(index), out, class_ids)}")
    if html:
        page = write_page(
            store, html, samples=indices or None, max_samples=max_samples, root=root, cache=kept, progress=True
        )
        each = format_bytes(page.num_bytes / page.samples)
        say(f"wrote {page.path}: {format_bytes(page.num_bytes)}, samples: {page.samples}, {each} each")
        for problem in page.image_problems:
            typer.echo(f"warning: shown on grey, the image could not be read: {problem}", err=True)


def _names(text: str | None) -> list[str] | None:
    names = None if text is None else [name.strip() for name in text.split(",") if name.strip()]
    if names == []:
        raise typer.BadParameter(f"expected names such as canny,sift, got {text!r}", param_hint="--structures")
    return names


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
    from .store.frame import Frame

    if short_edge is None and max_long_edge is None and canvas is None:
        return None
    short = Frame().short_edge if short_edge is None else short_edge
    long = 2 * short if max_long_edge is None else max_long_edge
    return Frame(short_edge=short, max_long_edge=long, canvas=long + -long % 8 if canvas is None else canvas)
