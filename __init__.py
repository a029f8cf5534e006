"""physseg: pseudo ground truth computed once, open-vocabulary segmenters trained on it many times."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from .common.errors import PhyssegError

if TYPE_CHECKING:
    from .manifests.manifest import Manifest
    from .pipeline.store.open_store import Store
    from .train.data.store_dataset import StoreDataset
    from .train.evaluation.judge import ClassIous
    from .train.evaluation.result import Evaluation
    from .train.prediction.trained_model import TrainedModel
    from .train.public import losses, plugins, testing

__all__ = [
    "PhyssegError",
    "StoreDataset",
    "__version__",
    "evaluate_predictions",
    "load",
    "losses",
    "open_store",
    "plugins",
    "testing",
]
__version__ = "0.1.0"

_SHORT = {f"{__name__}.{name}": f"{__name__}.train.public.{name}" for name in ("losses", "plugins", "testing")}
"""Short name of a module -> where it is."""


def load(
    path: str | Path,
    *,
    device: str = "auto",
    checkpoint: int | Literal["latest", "previous", "best"] = "latest",
    windows: bool = True,
    step: int | None = None,
) -> "TrainedModel":
    """A trained model for a notebook or a script: from a run folder, an imported checkpoint, or an exported model.

        model = physseg.load("runs/both")
        labels = model.segment("photo.jpg", ["cat", "dog", "sofa"])   # (H, W) indices into the list

    `device` is "auto" (CUDA if there is one) or a PyTorch device; `checkpoint` a step, or "latest", "previous" or
    "best" as on the command line (`step` is its older name); `windows=False` looks at the whole image only, five times
    faster. Raises RunFolderError, CheckpointError or ConfigError.
    """
    from .train.prediction.trained_model import load_trained

    if step is not None:
        warnings.warn("physseg.load: step is now checkpoint", DeprecationWarning, stacklevel=2)
        checkpoint = step
    return load_trained(path, device=device, checkpoint=checkpoint, windows=windows)


def open_store(path: str | Path, *, images: str | None = None) -> "Store":
    """A store that `physseg preprocess` wrote, as a sequence of its samples.

        store = physseg.open_store("train.zarr")
        sample = store[3]                    # or store["000000000139"]
        edges = sample.arrays["canny"]       # uint8 of sample.size, (height, width)
        pixels = store.image(3)              # uint8 RGB, (height, width, 3)

    Args:
        path: Folder or URL of the store.
        images: Root folder or URL of the images, where they have moved since the manifest was made, or where their
            files are to be read although the store has the layer `image`.

    Raises:
        StoreError: There is no store, or another tool has changed it.
    """
    from .pipeline.store.open_store import Store

    return Store(path, images=images)


def evaluate_predictions(
    predictions: str | Path,
    manifest: "Manifest | str | Path | None" = None,
    *,
    trained_on: Sequence[str] | None = None,
    ids: Literal["auto", "classes", "dataset"] = "auto",
    allow_missing: bool = False,
    progress: bool = False,
) -> "Evaluation | ClassIous":
    """Score predictions that any repository made: what `physseg judge` does.

        found = physseg.evaluate_predictions("theirs/sem_seg_predictions.json", "ade150.parquet")
        print(found.table())
        numbers = found.document()   # fractions 0..1, as `physseg evaluate` writes them

    Args:
        predictions: A folder of label PNGs, detectron2's JSON, a confusion matrix (`.npz`, `.csv`), or a `.csv` with
            the header `class,iou_percent`.
        manifest: The labels; not needed for a matrix or IoUs.
        trained_on: Classes that count as seen. Default: COCO-Stuff's 171.
        ids: What the numbers in predictions are: class ids, raw ids of the manifest's table, or whichever fits.
        allow_missing: Whether to score the samples that have a prediction where others have none.
        progress: Whether to show a bar.

    Returns:
        A `ClassIous` for IoUs alone, else an `Evaluation`. Both have `document()` and `table()`.

    Raises:
        EvaluationError: Predictions are missing, of another size, of unknown ids, or of no known form.
    """
    from .train.evaluation.judge import evaluate_predictions

    return evaluate_predictions(
        predictions, manifest, trained_on=trained_on, ids=ids, allow_missing=allow_missing, progress=progress
    )


class _ShortNames(Loader):
    """Finds and loads the modules of short names: `import physseg.losses` gives the one module of both names."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, origin=_SHORT[name]) if name in _SHORT else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(_SHORT[module.__name__])  # in place of the empty one


sys.meta_path.append(_ShortNames())


def __getattr__(name: str) -> Any:
    """What is imported when it is first asked for."""
    if f"{__name__}.{name}" in _SHORT:
        return import_module(f"{__name__}.{name}")
    if name == "StoreDataset":
        return import_module(f"{__name__}.train.data.store_dataset").StoreDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
