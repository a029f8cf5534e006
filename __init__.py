"""physseg: pseudo ground truth computed once, open-vocabulary segmenters trained on it many times."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .train.trained_model import TrainedModel

__version__ = "0.1.0"


class PhyssegError(Exception):
    """Base of every error a user can cause or meet; each package derives named errors from it and a builtin.

    The message says where, what was expected and what was found. ``hint`` says what to do next. ``fields`` carry the
    same facts for programs (``path``, ``sample_id``, ``expected``, ``got``, ``step``, ...).
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  hint: {self.hint}" if self.hint else message


def load(path: str | Path, *, device: str = "auto", step: int | None = None, windows: bool = True) -> "TrainedModel":
    """A trained model for a notebook or a script: from a run folder, an imported checkpoint, or an exported model.

        model = physseg.load("runs/both")
        labels = model.segment("photo.jpg", ["cat", "dog", "sofa"])   # (H, W) indices into the list

    `device` is "auto" (CUDA if there is one) or a PyTorch device; `step` chooses a checkpoint, the latest if not given;
    `windows=False` looks at the whole image only, five times faster. Raises RunFolderError or CheckpointError.
    """
    from .train.trained_model import load_trained

    return load_trained(path, device=device, step=step, windows=windows)
