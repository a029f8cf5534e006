"""`physseg manifest ...`: from a data set's folder to its checked manifest."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ..common.errors import ConfigError

if TYPE_CHECKING:
    from .checking import Checked, CheckSettings
    from .datasets.published import Found

T = TypeVar("T")

app = typer.Typer(help="Turn a data set folder into a table of samples with a vocabulary.", no_args_is_help=True)

QUARANTINE_EXIT = 3
"""Exit code of a run that ended well but put samples into quarantine."""

ImagesFolder = Annotated[Path | None, typer.Option("--images", help="Folder of the photographs (JPEG or PNG).")]
LabelsFolder = Annotated[Path | None, typer.Option("--labels", help="Folder of the label pictures, one id per pixel.")]
ListFile = Annotated[
    Path | None, typer.Option("--list", help="Use only these samples: one file name without extension per line.")
]
Exif = Annotated[
    str, typer.Option(help="Images with an EXIF orientation: error (quarantine), apply (turn them) or ignore.")
]
MaxMegapixels = Annotated[float, typer.Option(help="Larger pictures are quarantined before they are decoded.")]
AllowJpegWarnings = Annotated[
    bool, typer.Option("--allow-jpeg-warnings", help="Note JPEGs that decode with a warning instead of quarantining.")
]
Threads = Annotated[int, typer.Option("--workers", min=0, max=1024, help="Threads; 0 = the cores you may use.")]
AllowQuarantine = Annotated[bool, typer.Option("--allow-quarantine", help="Exit 0 although samples were quarantined.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the pixel share of every class.")]
Check = Annotated[
    bool, typer.Option("--check", help="Compare with what was published, say what is missing; --out may be left out.")
]
ManifestOut = Annotated[
    str | None, typer.Option("--out", help="The manifest to write, e.g. ade150.parquet; a file or a URL.")
]
BenchmarkRoot = Annotated[Path, typer.Option("--root", help="Folder into which the archives were unpacked.")]
BenchmarkSplit = Annotated[str | None, typer.Option("--split", help="Default: the one that is evaluated.")]


def parsed(parse: Callable[[str], T], text: str | None, option: str) -> T | None:
    """The value of an option; one that does not parse is an error of usage."""
    try:
        return None if text is None else parse(text)
    except ConfigError as error:
        # The message may begin with the name that the value has elsewhere: `--part: part: expected ...` says it twice.
        raise typer.BadParameter(error.args[0].removeprefix(f"{option[2:]}: "), param_hint=option) from None


@app.command("coco-stuff")
def manifest_coco_stuff(
    out: ManifestOut = None,
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
    allow_jpeg_warnings: AllowJpegWarnings = False,
    workers: Threads = 0,
    allow_quarantine: AllowQuarantine = False,
    verbose: Verbose = False,
    check: Check = False,
) -> None:
    """COCO-Stuff, 171 classes, from `stuffthingmaps` PNGs or from the stuff and instances JSON files.

    Exit code 3: the manifest is written, but some samples were quarantined.
    """
    from .datasets import published

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
        settings=_check_settings(exif, max_megapixels, allow_jpeg_warnings, workers, out, check=check),
    )
    _finish(found.checked, out, found if check else None, verbose=verbose, allow_quarantine=allow_quarantine)


def _benchmark_command(name: str, description: str) -> None:
    """Add `physseg manifest NAME` for a benchmark with a published layout."""

    def command(
        root_folder: BenchmarkRoot,
        out: ManifestOut = None,
        split: BenchmarkSplit = None,
        form: Annotated[
            str | None,
            typer.Option(
                help="What the label files are: json (the merged file), mat, painted (PNGs made from json), ids "
                "(0..58, 255; of 60: 0..59), colours (the older form). Default: json if it is there, else mat."
            ),
        ] = None,
        labels: Annotated[Path | None, typer.Option(help="Folder of the label files; needs --form.")] = None,
        write_labels: Annotated[Path | None, typer.Option(help="New folder for PNGs painted from the JSON.")] = None,
        list_file: ListFile = None,
        exif: Exif = "ignore",
        max_megapixels: MaxMegapixels = 100.0,
        allow_jpeg_warnings: AllowJpegWarnings = False,
        workers: Threads = 0,
        allow_quarantine: AllowQuarantine = False,
        verbose: Verbose = False,
        check: Check = False,
    ) -> None:
        from .datasets import published

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
            settings=_check_settings(exif, max_megapixels, allow_jpeg_warnings, workers, out, check=check),
        )
        archive = found if check else None
        _finish(found.checked, out, archive, verbose=verbose, allow_quarantine=allow_quarantine, benchmark=True)

    if not name.startswith("pascal-context"):  # Typer makes the options from the signature
        signature = inspect.signature(command)
        options = [o for o in signature.parameters.values() if o.name not in ("form", "labels", "write_labels")]
        command.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    command.__doc__ = (
        f"{description}\n\nExit code 1: something is missing, nothing is written; 3: some samples were quarantined."
    )
    app.command(name)(command)


_benchmark_command("ade20k-150", "ADE20K, 150 classes, from ADEChallengeData2016.")
_benchmark_command("ade20k-847", "ADE20K, 847 classes, from the full release 2021_17_01; short side capped at 512 px.")
_benchmark_command("pascal-voc-20", "Pascal VOC 2012, 20 classes, background ignored, from VOCdevkit/VOC2012.")
_benchmark_command("pascal-voc-20b", "Pascal VOC 2012, 20 classes and background (prompted by 39 other words).")
_benchmark_command("pascal-voc-21", "Pascal VOC 2012, background (class 0, prompted as such) and 20 classes.")
_benchmark_command("pascal-context-59", "Pascal Context, 59 classes, from VOCdevkit/VOC2010 and trainval_merged.json.")
_benchmark_command("pascal-context-60", "Pascal Context, background (class 0, prompted as such) and 59 classes.")
_benchmark_command("pascal-context-459", "Pascal Context, 459 classes, from VOCdevkit/VOC2010 and its trainval/*.mat.")


@app.command("folder")
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
    image_suffix: Annotated[str, typer.Option(help="Left out at the end of images' names: _leftImg8bit.")] = "",
    label_suffix: Annotated[str, typer.Option(help="Left out at the end of labels' names: _mask.")] = "",
    exif: Exif = "error",
    max_megapixels: MaxMegapixels = 100.0,
    allow_jpeg_warnings: AllowJpegWarnings = False,
    workers: Threads = 0,
    allow_quarantine: AllowQuarantine = False,
    verbose: Verbose = False,
) -> None:
    """A data set of your own: images, label pictures (8-bit, palette or 16-bit PNG) and a class file.

    Exit code 3: the manifest is written, but some samples were quarantined.
    """
    from .datasets.folder import folder

    checked = folder(
        classes=classes,
        root=root_folder,
        split=split,
        images=images,
        labels=labels,
        ignore=ignore or (),
        first_id=first_id,
        listed=list_file,
        name=name,
        image_suffix=image_suffix,
        label_suffix=label_suffix,
        settings=_check_settings(exif, max_megapixels, allow_jpeg_warnings, workers, out),
    )
    _finish(checked, out, verbose=verbose, allow_quarantine=allow_quarantine)


def _check_settings(
    exif: str, max_megapixels: float, allow_jpeg_warnings: bool, workers: int, out: str | None, *, check: bool = False
) -> "CheckSettings":
    from .checking import CheckSettings
    from .errors import ManifestError

    if out is None and not check:
        raise typer.BadParameter("expected --out FILE for a manifest, --check to look at the archive, or both")
    if out is not None and Path(out).is_dir():
        hint = f"e.g. --out {Path(out) / 'train.parquet'}"
        raise ManifestError.mismatch(out, "a file to write", "a folder", hint=hint)
    return CheckSettings(
        exif=exif, max_megapixels=max_megapixels, allow_jpeg_warnings=allow_jpeg_warnings, workers=workers
    )


def _finish(
    checked: "Checked",
    out: str | None,
    archive: "Found | None" = None,
    *,
    verbose: bool,
    allow_quarantine: bool,
    benchmark: bool = False,
) -> None:
    """Write the manifest and say what is in it; of an archive that is checked, what it lacks.

    A manifest is written of a complete archive only.
    """
    from .report import EVALUATE, PREPROCESS, archive_lines, summary_lines

    incomplete = archive is not None and bool(archive.faults)
    written = None if incomplete else out
    if written is not None:
        checked.manifest.write(written)
    summary = summary_lines(checked, written, verbose=verbose, next_step=EVALUATE if benchmark else PREPROCESS)
    lacks = archive_lines(archive) if archive else ()
    for line in (*lacks, *summary) if written is not None else (*summary, *lacks):
        typer.echo(line)
    if incomplete:
        raise typer.Exit(1)
    if checked.manifest.quarantined and not allow_quarantine:
        typer.echo(f"exit code {QUARANTINE_EXIT} for quarantined samples; --allow-quarantine accepts them", err=True)
        raise typer.Exit(QUARANTINE_EXIT)
