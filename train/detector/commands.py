"""`physseg superpoint ...`: train and judge detectors."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ...common.command_line.app import App
from ...common.command_line.options import PRINT, Device, JsonOut, show, to_write
from ...common.text import counted

app = App(help="Train and judge SuperPoint detectors.", no_args_is_help=True)

DetectorRun = Annotated[Path, typer.Argument(help="Folder of the training: weights, checkpoint, log. Resumes.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of everything random.")]
BatchSize = Annotated[int, typer.Option(min=1, max=10**7, help="Number of pictures per step.")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, max=1024, help="Processes that draw pictures. Default: 0 on a CPU, up to 8 beside a GPU."),
]
Precision = Annotated[str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where the device computes in it.")]


@app.command("train-synthetic")
def superpoint_train_synthetic(
    run: DetectorRun,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps of the whole schedule.")] = 8400,
    seed: Seed = 0,
    full_width: Annotated[bool, typer.Option(help="The published widths; for GPUs.")] = False,
    batch_size: BatchSize = 32,
    precision: Precision = "auto",
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Teach a new detector on generated shapes with exact keypoints. Re-running the command resumes."""
    from ...structure_extractors.superpoint.network import Architecture
    from .loop import train
    from .pictures.sources import Shapes
    from .settings import TrainSettings

    settings = TrainSettings(steps=steps, seed=seed, batch_size=batch_size, precision=precision)
    if full_width:
        settings = replace(settings, widths=Architecture().widths, head_width=Architecture().head_width)
    weights = train(Shapes(), settings, run, device=device, workers=workers, say=typer.echo)
    typer.echo(f"{weights}: trained on shapes")


@app.command("textures")
def superpoint_textures(
    folder: Annotated[Path, typer.Argument(help="Folder for texture_00000.png, ...")],
    number: Annotated[int, typer.Option("--num-images", min=1, help="Number of pictures.")] = 400,
    seed: Seed = 0,
) -> None:
    """Write generated pictures that no photographer owns, 240x320, to label and train on."""
    from .labelling import write_textures

    drawn = write_textures(folder, number=number, seed=seed, size=(240, 320))
    typer.echo(f"{folder}: {counted(number, 'texture')}, {drawn} of them drawn now")


@app.command("label")
def superpoint_label(
    images: Annotated[Path, typer.Argument(help="Folder of pictures, searched to any depth.")],
    out: Annotated[Path, typer.Argument(callback=to_write, help="Label file to write, e.g. labels.npz. Resumes.")],
    weights: Annotated[Path | None, typer.Option(help="Detector to label with. Default: the package's own.")] = None,
    adaptation: Annotated[int, typer.Option(min=1, help="Number of homographies per picture.")] = 100,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Keypoints are more probable than this.")] = 0.015,
    max_points: Annotated[int, typer.Option(min=1, help="Number of keypoints to keep of each picture.")] = 600,
    precision: Precision = "auto",
    device: Device = "auto",
) -> None:
    """Label pictures by homographic adaptation: a detector's mean answer to many warped copies of each."""
    from ...structure_extractors.superpoint.extractor import SHIPPED_WEIGHTS
    from .labelling import LabelSettings, label

    settings = LabelSettings(adaptation=adaptation, threshold=threshold, max_points=max_points, precision=precision)
    labelled = label(images, out, weights or SHIPPED_WEIGHTS, settings, device=device, say=typer.echo)
    number = len(labelled.names)
    typer.echo(f"{out}: {counted(number, 'picture')}, {len(labelled.points) / number:.0f} keypoints each")


@app.command("train")
def superpoint_train(
    run: DetectorRun,
    images: Annotated[Path, typer.Argument(help="Folder of the labelled pictures.")],
    labels: Annotated[Path, typer.Argument(help="Label file of `physseg superpoint label`.")],
    start: Annotated[Path | None, typer.Option(help="Weights to begin with. Default: the package's own.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps of the whole schedule.")] = 2000,
    shapes: Annotated[float, typer.Option(min=0, max=1, help="Share of generated shapes among the pictures.")] = 0.3,
    seed: Seed = 1,
    batch_size: BatchSize = 32,
    precision: Precision = "auto",
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Train a detector further on labelled pictures. Re-running the command resumes."""
    from ...structure_extractors.superpoint.extractor import SHIPPED_WEIGHTS
    from .loop import train
    from .pictures.sources import labelled_source
    from .settings import further_settings

    settings = further_settings(steps=steps, seed=seed, batch_size=batch_size, precision=precision)
    source = labelled_source(images, labels, shapes, settings.size)
    first = start or SHIPPED_WEIGHTS
    weights = train(source, settings, run, start=first, device=device, workers=workers, say=typer.echo)
    typer.echo(f"{weights}: trained on {counted(len(source.labels.names), 'labelled picture')}")


@app.command("reproduce")
def superpoint_reproduce(
    folder: Annotated[Path, typer.Argument(help="Folder for everything that is made on the way. Resumes.")],
    precision: Precision = "auto",
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Make a detector by the package's recipe: shapes, then rounds of labelling textures and training on them.

    It takes an hour and a half on two cores with AVX-512 BF16, up to twice that without. Re-running resumes.
    The weights in the package were made by it. Other machines sum in another order: elsewhere the bytes are others.
    """
    from .recipe import Recipe, reproduce

    weights = reproduce(folder, Recipe(), precision=precision, device=device, workers=workers, say=typer.echo)
    typer.echo(f"{weights}: judge it with `physseg superpoint evaluate {weights}`")


@app.command("evaluate")
def superpoint_evaluate(
    weights: Annotated[Path | None, typer.Argument(help="Weights to judge. Default: the package's own.")] = None,
    sequence: Annotated[list[Path] | None, typer.Option(help="Folder of img1, ..., H1to2p, ... Repeatable.")] = None,
    photographs: Annotated[Path | None, typer.Option(help="Folder of pictures to warp, relight and compress.")] = None,
    per_kind: Annotated[int, typer.Option(min=1, help="Number of held-out pictures of each kind of shape.")] = 50,
    json_file: JsonOut = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for pictures of what is found and missed.")] = None,
    device: Device = "auto",
) -> None:
    """Judge a detector on shapes and photographs, beside Harris, Shi-Tomasi, FAST and SIFT."""
    from ...structure_extractors.superpoint.extractor import SHIPPED_WEIGHTS
    from ...structure_extractors.superpoint.inference import read_detector
    from ..model.device import choose_device
    from .judging.evaluation import TITLES, evaluate, network_detector, table
    from .judging.pairs import read_sequences
    from .judging.sheets import write_pictures

    path = weights or SHIPPED_WEIGHTS
    detector = read_detector(path, device=str(choose_device(device)))
    if pictures is not None:
        to_write(pictures / "*")
    sequences = read_sequences(sequence or ())
    say, lines = partial(typer.echo, err=json_file == PRINT), list[str]()
    tables = evaluate(detector.network, sequences=sequences, photographs=photographs, per_kind=per_kind, say=say)
    for measure, rows in tables.items():
        lines += ["", TITLES[measure], *table(rows, smaller=measure.endswith("px"))]
    show("\n".join(lines), {"weights": path.name, **tables}, json_file)
    if pictures is not None:
        detect = network_detector(detector.network)
        files = write_pictures(pictures, detect, threshold=detector.threshold, sequences=sequences)
        say(f"{pictures}: {counted(len(files), 'picture')} of what it finds")
