"""`physseg.plugins`: what a package needs to offer a part of its own (docs/python.md). Loads neither torch nor dask."""

from ...common.plugins import PluginError
from ...structure_extractors.interface import Extractor
from ..losses.interface import Loss, ModelView, Outputs
from ..model.backbones.interface import Backbone

__all__ = ["Backbone", "Extractor", "Loss", "ModelView", "Outputs", "PluginError"]
