"""`physseg superpoint ...`: train and judge detectors."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Train and judge SuperPoint detectors; the package's own was made this way.", no_args_is_help=True
)

DetectorRun = Annotated[Path, typer.Argument(help="Folder of the training: weights, checkpoint, log. Resumes.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
TorchDevice = Annotated[str, typer.Option(help='"cpu", "cuda", "cuda:1", ...')]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures per step.")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that draw pictures. Default: 0 on a CPU, up to 8 beside a GPU."),
]
Precision = Annotated[
    str, typer.Option(help="bfloat16 or float32; auto: bfloat16 where the device has instructions for it.")
]


@app.command("train-synthetic")
def superpoint_train_synthetic(
    run: DetectorRun,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the whole schedule.")] = 8400,
    seed: Seed = 0,
    full_width: Annotated[bool, typer.Option("--full-width", help="The published widths; for GPUs.")] = False,
    batch_size: BatchSize = 32,
    precision: Precision = "auto",
    device: TorchDevice = "cpu",
    workers: Workers = None,
) -> None:
    """Teach a new detector on generated shapes with exact keypoints. The same command again goes on."""
    from . import work as commands

    commands.train_synthetic(
        run,
        steps=steps,
        seed=seed,
        full_width=full_width,
        batch_size=batch_size,
        precision=precision,
        device=device,
        workers=workers,
        say=typer.echo,
    )


@app.command("textures")
def superpoint_textures(
    folder: Annotated[Path, typer.Argument(help="Folder for texture_00000.png, ...")],
    number: Annotated[int, typer.Option(min=1, help="How many.")] = 400,
    seed: Seed = 0,
) -> None:
    """Write generated pictures that no photographer owns, 240x320, to label and train on."""
    from .labelling import write_textures

    write_textures(folder, number=number, seed=seed, size=(240, 320))
    typer.echo(f"{folder}: {number} textures")


@app.command("label")
def superpoint_label(
    images: Annotated[Path, typer.Argument(help="Folder of pictures, searched to any depth.")],
    out: Annotated[Path, typer.Argument(help="Label file to write, e.g. labels.npz. Resumes.")],
    weights: Annotated[Path | None, typer.Option(help="Detector to label with. Default: the package's own.")] = None,
    adaptation: Annotated[int, typer.Option(min=1, help="Homographies per picture.")] = 100,
    threshold: Annotated[float, typer.Option(help="Keypoints are more probable than this.")] = 0.015,
    max_points: Annotated[int, typer.Option(min=1, help="The best so many of each picture.")] = 600,
    precision: Precision = "auto",
    device: TorchDevice = "cpu",
) -> None:
    """Label pictures by homographic adaptation: a detector's mean answer to many warped copies of each."""
    from ...structure_extractors.superpoint.extractor import SHIPPED_WEIGHTS
    from .labelling import label

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


@app.command("train")
def superpoint_train(
    run: DetectorRun,
    images: Annotated[Path, typer.Argument(help="Folder of the labelled pictures.")],
    labels: Annotated[Path, typer.Argument(help="Label file of `physseg superpoint label`.")],
    start: Annotated[Path | None, typer.Option(help="Weights to begin with. Default: the package's own.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the whole schedule.")] = 2000,
    shapes: Annotated[float, typer.Option(min=0, max=1, help="Share of generated shapes among the pictures.")] = 0.3,
    seed: Seed = 1,
    batch_size: BatchSize = 32,
    precision: Precision = "auto",
    device: TorchDevice = "cpu",
    workers: Workers = None,
) -> None:
    """Train a detector further on labelled pictures. The same command again goes on."""
    from . import work as commands

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
        workers=workers,
        say=typer.echo,
    )


@app.command("reproduce")
def superpoint_reproduce(
    folder: Annotated[Path, typer.Argument(help="Folder for everything that is made on the way. Resumes.")],
    precision: Precision = "auto",
    device: TorchDevice = "cpu",
    workers: Workers = None,
) -> None:
    """Make a detector by the package's recipe: shapes, then rounds of labelling textures and training on them.

    By what its parts took: two hours on a core with AMX, four on two cores without. The same command again goes on.
    Every machine sums in an order of its own, so the bytes of the weights are not those in the package.
    """
    from .recipe import Recipe, reproduce

    weights = reproduce(folder, Recipe(), precision=precision, device=device, workers=workers, say=typer.echo)
    typer.echo(f"{weights}: judge it with `physseg superpoint evaluate {weights}`")


@app.command("evaluate")
def superpoint_evaluate(
    weights: Annotated[Path | None, typer.Argument(help="Weights to judge. Default: the package's own.")] = None,
    sequence: Annotated[
        list[Path] | None, typer.Option(help="Folder of img1, img2, ... with H1to2p, ...; repeatable.")
    ] = None,
    photographs: Annotated[Path | None, typer.Option(help="Folder of pictures to warp and to make noisy.")] = None,
    per_kind: Annotated[int, typer.Option(min=1, help="Held-out pictures of each kind of shape.")] = 50,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for pictures of shapes and sequences with what is found and missed.")
    ] = None,
    device: TorchDevice = "cpu",
) -> None:
    """Average precision on held-out shapes and repeatability on photographs, beside Harris, Shi-Tomasi, FAST, SIFT."""
    from . import work as commands

    commands.evaluate_weights(
        weights,
        sequences=sequence or (),
        photographs=photographs,
        per_kind=per_kind,
        out=out,
        device=device,
        say=typer.echo,
        pictures=pictures,
    )
