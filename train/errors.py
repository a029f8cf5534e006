"""Named errors of training, evaluation and prediction."""

from ..common.errors import PhyssegError


class TrainDataError(PhyssegError, ValueError):
    """Store and configuration do not fit: a structure is not cached, the crop exceeds the canvas, nothing is usable."""


class RunFolderError(PhyssegError, ValueError):
    """A run folder is not one, belongs to another configuration, or holds no checkpoint."""


class CheckpointError(PhyssegError, RuntimeError):
    """A checkpoint is torn, foreign, or of another architecture."""


class WeightsError(PhyssegError, RuntimeError):
    """Pretrained weights are not in the cache, of no known tag, or could not be downloaded whole."""


class NonFiniteLossError(PhyssegError, RuntimeError):
    """A loss, gradient or weight is NaN or infinite; raised before what is kept changes, with step and parts."""

    exit_code = 4


class PlanningError(PhyssegError, RuntimeError):
    """A step cannot be rehearsed without values."""


class RankError(PhyssegError, RuntimeError):
    """Another process of this training failed."""


class EvaluationError(PhyssegError, ValueError):
    """A manifest cannot be evaluated: no usable rows, or classes that do not fit the vocabulary."""


class AnalysisError(PhyssegError, ValueError):
    """An analysis cannot be made of what was given."""


class PredictionError(PhyssegError, ValueError):
    """One or more images could not be predicted, or the class list is unusable."""


class ShapeError(PhyssegError, ValueError):
    """Arrays that belong together do not fit together, or hold values outside their range."""
