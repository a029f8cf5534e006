"""`physseg.losses`: the losses as pure functions of tensors, for anybody's loop (docs/python.md)."""

from ..losses.alignment import patch_alignment_loss, patch_weights
from ..losses.segmentation import segmentation_loss
from ..losses.structure import structure_loss, structure_targets

__all__ = ["patch_alignment_loss", "patch_weights", "segmentation_loss", "structure_loss", "structure_targets"]
