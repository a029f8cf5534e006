"""`physseg analyse ...`: what trained models say about the method."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ...common.atomic import atomic_write
from ...common.command_line.app import App
from ...common.command_line.options import PRINT, Device, JsonOut, NumImages, Root, show, to_write
from ...common.text import align, counted, latex_table
from .. import commands

app = App(help="Make the paper's analyses of trained models.", no_args_is_help=True)

LatexOut = Annotated[
    Path | None, typer.Option("--latex", callback=to_write, help="File to write the table to, for LaTeX with booktabs.")
]


@app.command()
def ablation(
    table: Annotated[str, typer.Argument(help="table3, table4 (the paper's), edges, study, or a TOML file of rows.")],
    config: Annotated[
        str, typer.Argument(help="Configuration: a TOML file or a recipe.", autocompletion=commands.recipes)
    ],
    manifests: Annotated[list[Path] | None, typer.Argument(help="Manifests to evaluate on.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs, the table and its figure.")] = Path("ablation"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas; every row trains with each.")] = "0,1,2",
    settings: commands.SetOption = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, which share the CPUs.")] = 1,
    no_windows: commands.NoWindows = False,
    dry_run: Annotated[bool, typer.Option(help="Print the training commands and stop.")] = False,
) -> None:
    """Train every row of a table with several seeds, and print their mIoU with paired differences to another row.

    Re-running the command resumes. Runs that were trained elsewhere into the same folders count.
    """
    from ...manifests.manifest import Manifest
    from . import ablation as runs_of
    from . import ablation_table

    if not all(text.strip().isdigit() for text in seeds.split(",")):
        raise typer.BadParameter(f"expected numbers as in 0,1,2, got {seeds!r}", param_hint="--seeds")
    chosen, numbers = runs_of.read_table(table), [int(text) for text in seeds.split(",")]
    runs = runs_of.plan(chosen, config, out=out, seeds=numbers, settings=settings or ())
    if dry_run:
        for run in runs:
            typer.echo(runs_of.command(run, config, settings or ()))
        return
    if not manifests:
        raise typer.BadParameter("name a manifest to evaluate on", param_hint="MANIFESTS")
    if len({path.stem for path in manifests}) < len(manifests):
        raise typer.BadParameter("two of one name would be one column", param_hint="MANIFESTS")
    tables = {path.stem: Manifest.read(path) for path in manifests}
    chosen.require(tables)
    several = partial(runs_of.run_at_once, jobs=jobs) if jobs > 1 else runs_of.run_all
    scores = several(runs, tables, windows=not no_windows, say=typer.echo)
    compared = {"against": chosen.against, "harmonic": chosen.harmonic}
    text = ablation_table.write_table(out, chosen.title, scores, **compared)
    typer.echo(f"\n{text}\nwritten to {out / 'ablation.md'}, ablation.tex, .svg, .png and .json")


@app.command()
def similarity(
    source: Annotated[str, typer.Argument(help="A run or exported model; with --clip, CLIP weights: a tag, a file.")],
    vocabularies: Annotated[
        list[str] | None,
        typer.Argument(help="Published names (ade20k-150, ...), manifests, class files. Default: those of Table 1."),
    ] = None,
    to: Annotated[str, typer.Option(help="The vocabulary of training.")] = "coco-stuff",
    clip: commands.Clip = None,
    prompts: commands.Prompts = "",
    synonyms: commands.SynonymRule = None,
    json_file: JsonOut = None,
    latex_file: LatexOut = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", callback=to_write, help="CSV file to write of every class's nearest class.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Tell how near test vocabularies are to the training classes, by CLIP's text encoder (Table 1).

    Hausdorff: of every test class its highest cosine to a training class, and of those the lowest. Symmetric: the same
    from both sides. Mean best: the mean instead of the lowest.
    """
    from ..model.device import choose_device
    from . import similarity as analysis
    from .encoders import find_encoder

    chosen = [analysis.find_vocabulary(text) for text in vocabularies or analysis.TABLE_1]
    reference = analysis.find_vocabulary(to)
    for vocabulary in (*chosen, reference) if vocabularies else ():
        typer.echo(f"{vocabulary.name}: {vocabulary.describe()}", err=json_file == PRINT)
    encoder = find_encoder(source, clip=clip, prompts=prompts, synonyms=synonyms, device=choose_device(device))
    found = analysis.similarities(encoder, chosen, reference)
    title = f"to {reference.name} ({counted(reference.num_classes, 'class')})"
    document = analysis.document(found, encoder.origin)
    show(_table(title, analysis.table(found), 4, latex_file), document, json_file)
    if csv_file:
        atomic_write(csv_file, analysis.neighbours_csv(found).encode())


@app.command()
def oracle(
    run: commands.Run,
    manifest: Annotated[Path, typer.Argument(help="Manifest of the images, of any vocabulary.")],
    regions: Annotated[
        str, typer.Option(help="Regions: class (all pixels of one in an image) or connected (its parts).")
    ] = "class",
    clip_weights: Annotated[
        str | None, typer.Option(help="Let pretrained CLIP name true regions as well: a tag or a file.")
    ] = None,
    clip: commands.Clip = None,
    checkpoint: commands.Checkpoint = "latest",
    max_images: NumImages = None,
    root: Root = None,
    no_windows: commands.NoWindows = False,
    first_resize: commands.FirstResize = "short-640",
    memory: commands.Memory = "2GiB",
    json_file: JsonOut = None,
    latex_file: LatexOut = None,
    device: Device = "auto",
) -> None:
    """Compare "where" and "what" (Figure 1): mIoU if the ground truth drew the regions, and if it named them.

    A model that gains much from true names knows "where" better than "what". The true regions are named by the model
    (highest mean probability) and by dense CLIP features: those of the run's own encoder, and with --clip-weights those
    of pretrained CLIP.
    """
    from ...manifests.manifest import Manifest
    from ..model.device import choose_device
    from . import oracle as analysis
    from .encoders import ClipEncoder, clip_of_weights

    table = Manifest.read(manifest, root=root)
    loaded = commands.load(run, checkpoint, device=device)
    clips = {"CLIP as trained in the run": ClipEncoder(loaded.model, {"run": str(run)})}
    if clip_weights:
        preset, synonyms = clip or loaded.model.config.clip, loaded.model.config.synonyms
        pretrained = clip_of_weights(clip_weights, preset, synonyms=synonyms, device=choose_device(device))
        clips[f"{preset} {Path(clip_weights).name}"] = pretrained
    found = analysis.run_oracles(
        loaded.model,
        table,
        clips=clips,
        regions=regions,  # type: ignore[arg-type]  # checked there
        max_images=max_images,
        settings=commands.inference_settings(memory, no_windows=no_windows, first_resize=first_resize),
    )
    title = f"{run} at step {loaded.step} on {manifest}; regions: {regions}"
    facts = {"run": str(run), "step": loaded.step, "dataset": table.dataset, "manifest": table.fingerprint}
    facts |= {"unit": "fraction", "regions": regions, "windows": not no_windows, "first_resize": first_resize}
    facts |= {"max_images": max_images, "rows": analysis.document(found, table.vocabulary.class_names)}
    show(_table(title, analysis.table(found), 4, latex_file), facts, json_file)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Two or more runs, the baseline first; NAME=RUN gives a caption.")],
    manifest: Annotated[Path, typer.Argument(help="Manifest of the images.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures, index.html and compare.json.")] = Path("compare"),
    samples: Annotated[list[str] | None, typer.Option("--sample", help="Sample to show, by id. Repeatable.")] = None,
    most_changed: Annotated[int, typer.Option(min=1, help="Show the N samples that changed most in accuracy.")] = 8,
    checkpoint: commands.Checkpoint = "latest",
    max_images: NumImages = None,
    root: Root = None,
    no_windows: commands.NoWindows = False,
    first_resize: commands.FirstResize = "short-640",
    classes_kept: commands.ClassesKept = None,
    memory: commands.Memory = "2GiB",
    json_file: JsonOut = None,
    device: Device = "auto",
) -> None:
    """Draw image, ground truth and the label maps of several runs side by side (Figures 5 and 6).

    Changes are those of the last run against the first one, in pixel accuracy, for better or worse.
    """
    from ...manifests.manifest import Manifest
    from ..prediction.text_cache import cached_texts
    from . import compare as analysis

    paths: dict[str, Path] = {}
    for text in runs:
        name, separator, path = text.partition("=")
        name, path = (name, path) if separator else (Path(text).name, text)
        if name in paths:
            raise typer.BadParameter(f"two runs are called {name!r}; say NAME=RUN", param_hint="RUNS")
        paths[name] = Path(path)
    if len(paths) < 2:
        raise typer.BadParameter("name two runs or more", param_hint="RUNS")
    to_write(out / "*")
    table = Manifest.read(manifest, root=root)
    loaded = {name: commands.load(path, checkpoint, device=device) for name, path in paths.items()}
    pictured, scores = analysis.compare_runs(
        {name: run.model for name, run in loaded.items()},
        table,
        sample_ids=samples or (),
        most_changed=most_changed,
        texts={name: cached_texts(run, table.vocabulary.classes) for name, run in loaded.items()},
        max_images=max_images,
        settings=commands.inference_settings(
            memory, no_windows=no_windows, first_resize=first_resize, classes_kept=classes_kept
        ),
    )
    facts = {name: {"run": str(paths[name]), "step": run.step} for name, run in loaded.items()}
    document = analysis.write_comparison(out, pictured, scores, facts, table)
    where = f"{counted(len(pictured), 'picture')} in {out}, all on one page: {out / 'index.html'}"
    show(f"{analysis.in_words(scores)}\n{where}", document, json_file)


@app.command()
def structure(
    run: Annotated[Path | None, typer.Argument(help="Run with structures; with --bsds it may be left out.")] = None,
    store: Annotated[str | None, typer.Option(help="Compare with this store's maps, of images not trained on.")] = None,
    bsds: Annotated[Path | None, typer.Option(help="Compare with people's boundaries: folder of BSDS500.")] = None,
    split: Annotated[str, typer.Option(help="Split of --bsds: train, val or test.")] = "val",
    tolerance: Annotated[
        float | None, typer.Option(min=0, max=10**6, help="Tolerance, px. Default: 0.0075 of the image's diagonal.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=32, help="Side of the head's windows, px. Default: the run's training crop.")
    ] = None,
    no_thin: Annotated[bool, typer.Option(help="Leave edges of --store as wide as they are, on both sides.")] = False,
    canny_blur: Annotated[
        float, typer.Option(min=0, max=50, help="Sigma of the blur before Canny on --bsds, px.")
    ] = 0.0,
    checkpoint: commands.Checkpoint = "latest",
    max_images: NumImages = None,
    root: Root = None,
    json_file: JsonOut = None,
    latex_file: LatexOut = None,
    device: Device = "auto",
) -> None:
    """Judge the structure head's maps by cached ones, or by the boundaries that people draw.

    Precision, recall and F at the best threshold, within a tolerance; "mirrored" is what the same maps, mirrored, get
    by chance. With --bsds, Canny's F stands beside the head's. Not the benchmark's one-to-one matching: compare these
    numbers with each other, not with published ones.
    """
    from . import structure as analysis

    if (store is None) == (bsds is None):
        raise typer.BadParameter("name either a store or BSDS500", param_hint="--store, --bsds")
    if store is not None and run is None:
        raise typer.BadParameter("name the run whose maps are to be compared with the store's", param_hint="RUN")
    loaded = commands.load(run, checkpoint, device=device) if run else None
    window_px = window or analysis.training_crop(run)
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
        images, model = analysis.find_bsds(Path(str(bsds)), split, max_images), loaded.model if loaded else None
        found = analysis.match_bsds(images, model, window_px=window_px, tolerance_px=tolerance, canny_blur=canny_blur)
    title += f", {counted(len(next(iter(found.values())).counts), 'image')}"
    document = {
        "run": str(run) if run else None,
        "step": loaded.step if loaded else None,
        "window_px": window_px,
        "store": str(store) if store else None,
        "bsds": split if bsds else None,
        "tolerance_px": tolerance,
        "thinned": not no_thin,
        "maps": {name: score.document() for name, score in found.items()},
    }
    show(_table(title, analysis.table(found), 6, latex_file), document, json_file)


def _table(title: str, rows: list[tuple[str, ...]], numbers: int, latex_file: Path | None) -> str:
    """A table of names, `numbers` columns of numbers and what else there is, as text; written as LaTeX where asked."""
    right = range(1, 1 + numbers)
    if latex_file:
        atomic_write(latex_file, f"{latex_table(rows, right=right)}\n".encode())
    return "\n".join([title, *align(rows, right=right)])
