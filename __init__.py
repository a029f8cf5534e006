"""physseg: pseudo ground truth computed once, open-vocabulary segmenters trained on it many times."""

from pathlib import Path
from typing import TYPE_CHECKING

from .common.errors import PhyssegError

if TYPE_CHECKING:
    from .train.prediction.trained_model import TrainedModel

__all__ = ["PhyssegError", "__version__", "load"]
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
