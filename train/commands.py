"""`physseg train`, `report`, `evaluate`, `predict`, `import-catseg`, `export`, `weights` and `demo`."""

from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..common.command_line.app import App, completed
from ..common.command_line.options import PRINT, Device, JsonOut, NumImages, Root, parsed, show, to_write
from ..common.settings import to_dict
from ..common.text import Part, align, counted, format_bytes, latex_table, markdown_table, parse_bytes, percent

if TYPE_CHECKING:
    from ..manifests.manifest import Manifest
    from ..manifests.vocabulary import Vocabulary
    from .config import TrainConfig
    from .evaluation.result import Evaluation
    from .model.inference import InferenceSettings
    from .prediction.load_run import LoadedRun

app = App()
demo_app = App()
app.add_typer(demo_app, name="demo")
weights_app = App(help="List and fetch pretrained CLIP weights.", no_args_is_help=True)

_tags = completed(lambda: [one.tag for one in import_module(".weights.fetch", __package__).tags_of(None)])
recipes = completed(lambda: [path.stem for path in Path(__file__).with_name("recipes").glob("*.toml")])
Run = Annotated[Path, typer.Argument(help="Run folder, imported checkpoint or exported model.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the configuration. Repeatable."),
]
Checkpoint = Annotated[str, typer.Option(help="Step, latest, previous (the one before), best (the highest mIoU).")]
Clip = Annotated[str | None, typer.Option(help="Backbone of the weights, such as ViT-L-14-336.")]
Prompts = Annotated[str, typer.Option(help='Prompts: "single", "imagenet", a template with {}, or a file of them.')]
SynonymRule = Annotated[str | None, typer.Option(help="first or mean of a class's synonyms. Default: as in training.")]
Memory = Annotated[str, typer.Option("--memory-limit", help="Most to hold besides model, image and result.")]
AllClasses = Annotated[bool, typer.Option("--all-classes", help="Show every class, not best and worst.")]
ClassesKept = Annotated[int | None, typer.Option(min=1, help="Refine the N best classes of each crop alone: faster.")]
NoWindows = Annotated[bool, typer.Option("--no-windows", help="Whole images only: 5 times faster, another protocol.")]
FirstResize = Annotated[
    Literal["short-640", "none"],
    typer.Option(help="Antialiased resize before all others, as published; none: without it, another protocol."),
]


def load(run: Path, checkpoint: str, *, device: str, prompts: str = "", synonyms: str | None = None) -> "LoadedRun":
    """The model that the options of a command name."""
    from .model.device import choose_device
    from .prediction.load_run import load_run, step_of

    step = parsed(step_of, checkpoint, "--checkpoint")
    return load_run(run, step=step, device=choose_device(device), prompts=prompts, synonyms=synonyms)


def inference_settings(
    memory: str, *, no_windows: bool, first_resize: Literal["short-640", "none"], classes_kept: int | None = None
) -> "InferenceSettings":
    """--memory-limit, --no-windows, --first-resize and --classes-kept together."""
    from .model.inference import PUBLISHED, InferenceSettings

    memory_bytes = parsed(parse_bytes, memory, "--memory-limit") or PUBLISHED.memory_bytes
    return InferenceSettings(
        first_resize=first_resize, windows=not no_windows, memory_bytes=memory_bytes, classes_kept=classes_kept
    )


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file or recipe. See --example, --recipes.", autocompletion=recipes)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: `run` of the configuration.")] = None,
    settings: SetOption = None,
    device: Annotated[str | None, typer.Option(help="Device. Default: `device` of the configuration.")] = None,
    stop_at: Annotated[int | None, typer.Option(min=1, help="Stop at this step; the schedule is not changed.")] = None,
    example: Annotated[bool, typer.Option(help="Print a commented configuration and exit.")] = False,
    listing: Annotated[bool, typer.Option("--recipes", help="List the recipes and their backbones, and exit.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what a step takes on a GPU and what fits; train nothing.")] = False,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of the batch, for --dry-run. Default: 1.")] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Memory of a GPU, such as 24GiB, for --dry-run. Default: the one here.")
    ] = None,
    device_rate: Annotated[
        float | None,
        typer.Option(min=1e-6, help="TFLOP/s of a GPU in training, for --dry-run. Default: measured here."),
    ] = None,
    json_file: JsonOut = None,
) -> None:
    """Train a segmenter on a store.

    Re-running the command resumes the run. Before you ask for GPUs: --dry-run tells memory by part, the largest batch,
    what to set where it does not fit, hours, and images/s, on any machine.
    """
    from .config import example_config, load_config

    if listing:
        _list_recipes()
        return
    if example:
        typer.echo(example_config(), nl=False)
        return
    if config is None:
        raise typer.BadParameter(
            "name a TOML file or a recipe (--recipes), or print a file with --example", param_hint="CONFIG"
        )
    loaded = load_config(config, [*(settings or ()), *([f"device={device}"] if device else ())], run=out)
    if dry_run:
        if json_file != PRINT:
            typer.echo(f"{config}:")
        _dry_run(loaded, gpus or 1, parsed(parse_bytes, gpu_memory, "--gpu-memory"), device_rate, json_file)
        return
    if any((gpus, gpu_memory, device_rate, json_file)):
        raise typer.BadParameter("goes with --dry-run", param_hint="--gpus, --gpu-memory, --device-rate or --json")
    from .loop.loop import train as run_training
    from .loop.words import end
    from .planning.estimate import refuse_what_cannot_fit

    refuse_what_cannot_fit(loaded)
    result = run_training(loaded, stop_at=stop_at)
    if result.rank > 0:
        return  # the first rank speaks for all
    if result.finished and result.first_step == result.step:
        typer.echo(f"{result.run}: finished already, at step {result.step}")
    elif result.finished:
        typer.echo(f"{result.run}: finished at step {result.step}")
        typer.echo(end(loaded, result.step, result.seconds))
    else:
        cause = f" by {result.stopped_by}" if result.stopped_by else ""
        typer.echo(f"{result.run}: stopped{cause} at step {result.step}; re-running the command resumes there")


def _list_recipes() -> None:
    from .config import load_config, recipes

    found = [(name, load_config(name)) for name in recipes()]
    rows = [(name, of.model.clip, of.clip_weights or "", f"{of.model.arch.image_px} px") for name, of in found]
    typer.echo("\n".join(align([("recipe", "backbone", "weights", "input"), *rows], right=())))


def _dry_run(
    config: "TrainConfig", gpus: int, gpu_memory: int | None, device_rate: float | None, json_file: Path | None
) -> None:
    from .model.device import choose_device
    from .planning.estimate import device_memory, plan
    from .planning.rate import measured_rates, named_rates

    device = choose_device(config.device)
    rates = named_rates(device_rate) if device_rate else measured_rates(device, config.precision)
    planned = plan(config, gpus=gpus, gpu_memory=gpu_memory or device_memory(device), rates=rates)
    show(planned.describe(), asdict(planned), json_file)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder; it may still be training.")],
    out: Annotated[Path | None, typer.Option(help="Page to write. Default: RUN/report.html.")] = None,
    checkpoint: Checkpoint = "latest",
    device: Device = "auto",
) -> None:
    """Write one HTML page of a run: curves, classes and their confusions, predictions, structure maps, settings."""
    from .model.device import choose_device
    from .prediction.load_run import step_of
    from .report.page import write_report
    from .runs.run_folder import RunFolder

    RunFolder(run).read()
    target, step = to_write(out or run / "report.html"), parsed(step_of, checkpoint, "--checkpoint")
    for text in write_report(run, target, step=step, device=choose_device(device)):
        typer.echo(f"not shown: {text}", err=True)
    typer.echo(f"{target}: {format_bytes(target.stat().st_size)}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, imported checkpoint, exported model. With --merge: a part.")],
    manifests: Annotated[
        list[str] | None,
        typer.Argument(help="Manifests to evaluate on, of any vocabulary; files or URLs. With --merge: more parts."),
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option("--benchmark", help="Data set under --root, such as ade20k-847 or a plug-in's. Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results. Default: RUN/evaluations.")] = None,
    checkpoint: Checkpoint = "latest",
    max_images: NumImages = None,
    part: Annotated[str | None, typer.Option(metavar="I/N", help="Take the I-th of N parts of the images.")] = None,
    merge: Annotated[bool, typer.Option(help="Add up the JSON files of all parts, given instead.")] = False,
    root: Root = None,
    no_windows: NoWindows = False,
    first_resize: FirstResize = "short-640",
    classes_kept: ClassesKept = None,
    prompts: Prompts = "",
    synonyms: SynonymRule = None,
    memory: Memory = "2GiB",
    by_size: Annotated[bool, typer.Option(help="mIoU of small, medium and large objects as well.")] = False,
    figures: Annotated[bool, typer.Option(help="Draw the result (SVG, PNG), write its tables for LaTeX.")] = False,
    all_classes: AllClasses = False,
    device: Device = "auto",
) -> None:
    """Score a run: mIoU, Boundary IoU, IoU by class.

    Also pixel accuracy; at the labels' own resolution, as benchmarks are. With --benchmark, --root is the folder of the
    archives. On a cluster each job takes a --part, and --merge adds them up.
    """
    from ..common.atomic import atomic_write
    from .evaluation.evaluate import evaluate_model
    from .evaluation.result import COLUMNS, paper_table
    from .prediction.text_cache import cached_texts
    from .runs.run_folder import RunFolder

    manifests, benchmarks, rows = manifests or [], benchmarks or [], 10**6 if all_classes else 10
    if merge:
        if any((part, benchmarks, max_images, root)):
            raise typer.BadParameter("takes nothing but JSON files of parts, --out and --figures", param_hint="--merge")
        _merge_parts([run, *map(Path, manifests)], out, rows, figures)
        return
    chosen_part = parsed(Part.parse, part, "--part")
    results_folder = to_write((out or RunFolder(run).evaluations) / "*").parent
    tables = _evaluated_tables(manifests, benchmarks, root)
    loaded = load(run, checkpoint, device=device, prompts=prompts, synonyms=synonyms)
    settings = inference_settings(memory, no_windows=no_windows, first_resize=first_resize, classes_kept=classes_kept)
    results = {}
    for name, manifest in tables.items():
        result = evaluate_model(
            loaded.model,
            manifest,
            trained_on=loaded.classes,
            max_images=max_images,
            part=chosen_part,
            by_size=by_size,
            settings=settings,
            texts=cached_texts(loaded, manifest.vocabulary.classes),
            source={"run": str(run), "step": loaded.step, "weights": loaded.weights},
        )
        results[manifest.dataset] = result
        typer.echo(f"\n{name} ({counted(result.num_images, 'image')}), {run} at step {loaded.step}")
        typer.echo(result.table(rows=rows))
        _write(result, results_folder, f"{name}-step_{loaded.step:08d}", figures)
    unlike_papers = (max_images, no_windows, first_resize == "none", classes_kept, chosen_part)
    if results.keys() & COLUMNS.keys() and not any(unlike_papers):
        columns, file = paper_table(run.name, results), results_folder / f"paper-step_{loaded.step:08d}.tex"
        typer.echo(f"\n{markdown_table(columns)}")
        if figures:
            atomic_write(file, latex_table(columns, right=range(1, len(columns[0]))).encode())
            typer.echo(f"for LaTeX: {file}")


def _merge_parts(files: list[Path], out: Path | None, rows: int, figures: bool) -> None:
    from .evaluation.result import merge, whole_name

    merged = merge(files)
    typer.echo(f"{merged.source['dataset']} ({counted(merged.num_images, 'image')} in {counted(len(files), 'part')})")
    typer.echo(merged.table(rows=rows))
    _write(merged, out or files[0].parent, whole_name(files[0]), figures)


def _write(result: "Evaluation", folder: Path, name: str, figures: bool) -> None:
    from .report.figures import write_figures

    typer.echo(f"written to {(file := result.write(folder, name))}")
    if figures:
        typer.echo(f"drawn beside it: {write_figures(result, file)}")


def _evaluated_tables(manifests: list[str], benchmarks: list[str], root: str | None) -> "dict[str, Manifest]":
    """Manifests by the name of their results."""
    from ..manifests.manifest import Manifest

    if benchmarks and manifests:
        raise typer.BadParameter("give manifests or --benchmark: --root means another folder for each")
    if not manifests and not benchmarks:
        raise typer.BadParameter("name a manifest, or a benchmark with --benchmark", param_hint="MANIFESTS")
    names = benchmarks or [Path(location).stem for location in manifests]
    if len(set(names)) < len(names):
        raise typer.BadParameter("two of one name would write the same results", param_hint="MANIFESTS")
    if benchmarks:
        return _benchmarks(benchmarks, root)
    return {name: Manifest.read(location, root=root) for name, location in zip(names, manifests, strict=True)}


def _benchmarks(names: list[str], root: str | None) -> "dict[str, Manifest]":
    from ..common import plugins
    from ..manifests.checking import CheckSettings
    from ..manifests.datasets import published

    if unknown := set(names).difference(known := plugins.names("datasets")):
        raise typer.BadParameter(f"{min(unknown)!r} is none of {', '.join(known)}", param_hint="--benchmark")
    if root is None:
        raise typer.BadParameter("--benchmark needs the folder of its archives", param_hint="--root")
    checks = CheckSettings(exif="ignore")  # as `physseg manifest NAME` by default
    found = {name: published.benchmark(name, root=Path(root), settings=checks).checked.manifest for name in names}
    for name, manifest in found.items():
        if manifest.quarantined:
            typer.echo(f"{name}: {counted(len(manifest.quarantined), 'quarantined sample')}", err=True)
    return found


@app.command()
def predict(
    run: Run,
    images: Annotated[list[Path], typer.Argument(help="JPEG or PNG files, folders, .txt lists, or a manifest.")],
    classes: Annotated[str | None, typer.Option(help='Words to look for, any: "cat, dog, sofa".')] = None,
    classes_file: Annotated[
        Path | None, typer.Option(help="Words in a file: one a line, numbered, or a JSON list.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("predictions"),
    form: Annotated[
        Literal["png", "detectron2"] | None,
        typer.Option("--format", help="Label maps for others: png (STEM.png), detectron2 (JSON of RLE)."),
    ] = None,
    confidence: Annotated[bool, typer.Option(help="Write NAME_confidence.png, too: 255 times probability.")] = False,
    json_file: JsonOut = None,
    root: Root = None,
    checkpoint: Checkpoint = "latest",
    no_windows: NoWindows = False,
    first_resize: FirstResize = "short-640",
    classes_kept: ClassesKept = None,
    prompts: Prompts = "",
    synonyms: SynonymRule = None,
    memory: Memory = "2GiB",
    device: Device = "auto",
) -> None:
    """Find any words in any images.

    Writes NAME_labels.png (class indices) and NAME_overlay.png (to look at); with --format label maps alone, for
    `physseg judge` and for others. A manifest brings its classes. --json holds the share and the scores of each word in
    each image. A word has one colour in all pictures.
    """
    from .prediction.predict import predict_files
    from .prediction.text_cache import cached_texts

    if confidence and form:
        raise typer.BadParameter("goes with pictures, without --format", param_hint="--confidence")
    chosen, vocabulary = _images_and_words(images, classes, classes_file, root)
    typer.echo(vocabulary.describe(), err=json_file == PRINT)
    loaded = load(run, checkpoint, device=device, prompts=prompts, synonyms=synonyms)
    settings = inference_settings(memory, no_windows=no_windows, first_resize=first_resize, classes_kept=classes_kept)
    texts, form_of = cached_texts(loaded, vocabulary.classes), form or "pictures"
    failed, number, documents = 0, 0, []
    for done in predict_files(
        loaded.model, chosen, vocabulary, out, form=form_of, confidence=confidence, settings=settings, texts=texts
    ):
        number += 1
        if json_file:
            documents.append(to_dict(done))
        if done.error:
            failed += 1
            typer.echo(f"error: {done.error}", err=True)
        elif form is None:
            found = [f"{one.name} {percent(one.share, digits=1)}" for one in done.classes[:5] if one.share]
            typer.echo(f"{done.overlay}: {', '.join(found)}", err=json_file == PRINT)
    source = {"run": str(run), "step": loaded.step, "weights": loaded.weights, "unit": "fraction"}
    document = source | {"vocabulary": list(vocabulary.classes), "images": documents}
    show(f"{counted(number - failed, 'image')} in {out}", document, json_file)
    if failed:
        typer.echo(f"{failed} of {number} images could not be predicted", err=True)
        raise typer.Exit(1)


def _images_and_words(
    images: list[Path], classes: str | None, classes_file: Path | None, root: str | None
) -> "tuple[Manifest | list[Path], Vocabulary]":
    """What `predict` looks at and for; a manifest brings its own words unless others are given."""
    from ..manifests.manifest import Manifest
    from .prediction.predict import find_images, read_words

    if len(images) != 1 or images[0].suffix != ".parquet":
        if root is not None:
            raise typer.BadParameter("is for the images of a manifest, and none is given", param_hint="--root")
        return find_images(images), read_words(classes, classes_file)
    manifest = Manifest.read(images[0], root=root)
    if manifest.quarantined:
        typer.echo(f"{counted(len(manifest.quarantined), 'quarantined sample')} left out", err=True)
    return manifest, read_words(classes, classes_file) if classes or classes_file else manifest.vocabulary


@app.command()
def judge(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="A folder of label PNGs, detectron2's sem_seg_predictions.json, a confusion matrix (.npz with the key "
            "`confusion`, or .csv), or a .csv of class,iou_percent."
        ),
    ],
    manifest: Annotated[Path | None, typer.Argument(help="Manifest of the labels; for PNGs and JSON.")] = None,
    json_file: JsonOut = None,
    trained_on: Annotated[
        Path | None, typer.Option(help="Class file of what was seen in training. Default: COCO-Stuff's 171.")
    ] = None,
    ids: Annotated[
        str,
        typer.Option(
            help="What the numbers are: classes (0..C-1), dataset (raw ids of the manifest's table), or auto: "
            "classes in PNGs; in JSON the first of both that fits."
        ),
    ] = "auto",
    allow_missing: Annotated[
        bool, typer.Option(help="Score the samples that have a prediction, and say how many lack one.")
    ] = False,
    root: Root = None,
    all_classes: AllClasses = False,
) -> None:
    """Score anybody's predictions as evaluate scores a run.

    PNGs are named SAMPLE_ID.png (or SAMPLE_ID_labels.png) and hold class ids, 8 or 16 bit. A matrix has true classes as
    rows, predicted ones as columns. From IoUs alone follow two means and nothing else.
    """
    from ..manifests.labels.class_file import read_class_file
    from ..manifests.manifest import Manifest
    from .evaluation.judge import evaluate_predictions

    found = evaluate_predictions(
        predictions,
        Manifest.read(manifest, root=root) if manifest else None,
        trained_on=read_class_file(trained_on) if trained_on else None,
        ids=ids,  # type: ignore[arg-type]  # checked there
        allow_missing=allow_missing,
        progress=True,
    )
    show(found.table(rows=10**6 if all_classes else 10), found.document(), json_file)


@app.command("import-catseg")
def import_catseg(
    file: Annotated[Path, typer.Argument(help="Published checkpoint (CVPR 2024), for example model_base.pth.")],
    out: Annotated[Path, typer.Argument(help="Run folder to make.")],
    classes_file: Annotated[
        Path | None, typer.Option(help="Class file of what it was trained on. Default: COCO-Stuff's 171.")
    ] = None,
    prompts: Prompts = "",
    heads: Annotated[int, typer.Option(min=1, help="Attention heads of its aggregator; the file does not tell.")] = 4,
) -> None:
    """Turn a published CAT-Seg checkpoint into a run folder.

    All sizes are read from the file; nothing in it is executed. --prompts are needed for other numbers than 1 and 80.
    """
    from ..manifests.labels.class_file import read_class_file
    from ..manifests.vocabulary import Vocabulary
    from .weights import catseg_import

    classes = read_class_file(classes_file) if classes_file else None
    if classes:
        typer.echo(Vocabulary(name="classes", classes=classes).describe())
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
    from .weights.export import write_export

    loaded = load(run, checkpoint, device="cpu")
    write_export(out, loaded.model, classes=loaded.classes, step=loaded.step, origin=loaded.origin)
    size = sum(path.stat().st_size for path in out.iterdir())
    typer.echo(f"{out}: step {loaded.step} of {run}, {size / 1e6:.1f} MB")


@weights_app.command("list")
def weights_list(clip: Clip = None, json_file: JsonOut = None) -> None:
    """List the tags of CLIP weights, and which are in the cache."""
    from .weights.cache import cache_folder
    from .weights.fetch import listing, listing_lines

    entries = listing(clip)
    show("\n".join((*listing_lines(entries), f"cache: {cache_folder()}")), entries, json_file)


@weights_app.command("fetch")
def weights_fetch(
    tag: Annotated[str, typer.Argument(help="Tag such as openai: `physseg weights list`.", autocompletion=_tags)],
    clip: Clip = None,
    url: Annotated[str | None, typer.Option(help="Another place of the same file, such as a mirror.")] = None,
) -> None:
    """Fetch CLIP weights into the cache.

    The only command that uses a network. --clip where several backbones have the tag. Then: clip_weights = "TAG".
    Licences differ from tag to tag: see docs/weights.md.
    """
    from .weights.cache import weights_folder
    from .weights.fetch import fetch, find_tag

    found = find_tag(tag, clip)
    record, fetched = fetch(found, url=url)
    path = weights_folder(record.clip, record.tag) / record.file
    typer.echo(f"{path}: {'fetched from ' + record.url if fetched else 'is in the cache already'}")
    typer.echo(f"{record.num_bytes} bytes, sha256 {record.sha256}")


@demo_app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("physseg_demo"),
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each of two trainings. Default: 200.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of scenes, weights and order.")] = 0,
    images: Annotated[
        int, typer.Option("--num-images", min=4, help="Training scenes; a quarter as many for validation.")
    ] = 160,
) -> None:
    """Run the whole chain on a small generated data set.

    No download, no GPU, a few minutes. Re-running the command resumes it; with other settings it starts over.
    """
    if context.invoked_subcommand:
        return
    from .demo.chain import DEFAULT_STEPS, DemoSettings, run_demo

    settings = DemoSettings(steps=steps or DEFAULT_STEPS, seed=seed, num_train=images, num_val=max(1, images // 4))
    run_demo(out, settings, say=typer.echo)


@demo_app.command("pretrain")
def demo_pretrain(
    out: Annotated[Path, typer.Option(help="Folder for the weights, checkpoint and log.")] = Path("physseg_pretrain"),
    steps: Annotated[int | None, typer.Option(min=1, help="Number of steps. Default: 6000.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, scenes, captions and order.")] = 0,
) -> None:
    """Pretrain a small CLIP on generated scenes with captions.

    It is judged by retrieval and zero-shot segmentation. Half an hour on two cores. Re-running the command resumes it.
    """
    from .demo.pretrain import PretrainSettings, judge, pretrain

    settings = PretrainSettings(seed=seed) if steps is None else PretrainSettings(seed=seed, steps=steps)
    weights = pretrain(out, settings, say=typer.echo)
    typer.echo(f"{weights}: {format_bytes(weights.stat().st_size)}")
    rows = [(name, percent(value, digits=1)) for name, value in judge(weights).items()]
    typer.echo("\n".join(align(rows, right={1})))


@demo_app.command("study")
def demo_study(
    out: Annotated[Path, typer.Option(help="Folder for scenes, manifests, store and configuration.")] = Path("study"),
) -> None:
    """Make what the study trains and tests on, and print the command that trains it: docs/study.md.

    A few minutes on two cores. Re-running the command keeps what is there.
    """
    from .demo.study import write_study

    write_study(out, say=typer.echo)
