"""physseg: pseudo ground truth computed once, open-vocabulary segmenters trained on it many times."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .common.errors import PhyssegError

if TYPE_CHECKING:
    from .manifests.manifest import Manifest
    from .train.evaluation.judge import ClassIous
    from .train.evaluation.result import Evaluation
    from .train.prediction.trained_model import TrainedModel

__all__ = ["PhyssegError", "__version__", "evaluate_predictions", "load"]
__version__ = "0.1.0"


def load(path: str | Path, *, device: str = "auto", step: int | None = None, windows: bool = True) -> "TrainedModel":
    """A trained model for a notebook or a script: from a run folder, an imported checkpoint, or an exported model.

        model = physseg.load("runs/both")
        labels = model.segment("photo.jpg", ["cat", "dog", "sofa"])   # (H, W) indices into the list

    `device` is "auto" (CUDA if there is one) or a PyTorch device; `step` chooses a checkpoint, the latest if not given;
    `windows=False` looks at the whole image only, five times faster. Raises RunFolderError or CheckpointError.
    """
    from .train.prediction.trained_model import load_trained

    return load_trained(path, device=device, step=step, windows=windows)


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
