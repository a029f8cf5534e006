"""`physseg.plugins`: what a package needs to offer a part of its own (docs/python.md). Loads neither torch nor dask."""

from ...common.plugins import PluginError
from ...manifests.datasets.interface import Dataset
from ...structure_extractors.errors import ExtractorError
from ...structure_extractors.interface import ArraySpec, Extractor
from ..losses.interface import Loss, ModelView, Outputs
from ..model.backbones.interface import Architecture, Backbone, DenseFeatures, Level

__all__ = [
    "Architecture",
    "ArraySpec",
    "Backbone",
    "Dataset",
    "DenseFeatures",
    "Extractor",
    "ExtractorError",
    "Level",
    "Loss",
    "ModelView",
    "Outputs",
    "PluginError",
]
