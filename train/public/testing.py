"""`physseg.testing`: checks that a part of another package keeps its contract (docs/python.md)."""

from ...common.plugins import ConformanceError
from ...manifests.datasets.conformance import check_dataset
from ...structure_extractors.conformance import check_extractor
from ..losses.conformance import check_loss
from ..model.backbones.conformance import check_backbone

__all__ = ["ConformanceError", "check_backbone", "check_dataset", "check_extractor", "check_loss"]
