"""What a loss is: a batch, the network's outputs and parts of the model in; a sum and what it is divided by out.

A package of your own brings one as an entry point of the group `physseg.losses` (docs/plugins.md, Losses). L_seg, L^p
and L^sac are such losses. This file loads no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


class Outputs(Protocol):
    """What the network made of B crops: T classes, N = g * g patches.

    Floating: float32, or bfloat16 where the run has `precision = "bf16"`.
    """

    @property
    def logits(self) -> "Tensor":
        """(B, T, 4 g, 4 g) scores of each class, before upsampling and the sigmoid."""

    @property
    def structure_logits(self) -> "Tensor | None":
        """(B, C, 4 g, 4 g) scores; None where lambda_p is 0. One channel for each map, then T for each structure of
        classes, both in the model's order.
        """

    @property
    def similarity(self) -> "Tensor | None":
        """(B, N, T) similarities of patches and class texts / temperature; None where lambda_sac is 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelView:
    """What a loss may see of the model besides its outputs."""

    ignore_index: int
    """Label of pixels that belong to no class."""
    grid: int
    """Number of patches along a side of the crop, g."""
    classes: tuple[str, ...] = ()
    """Names of the T training classes, as the vocabulary has them."""
    structures: tuple[str, ...] = ()
    """Names of the structures that the model predicts."""
    text_features: "Tensor | None" = None
    """(T, P, D) embeddings of the classes' P prompts, not normalised, with a gradient where texts train."""
    encode_image: "Callable[[Tensor], Any] | None" = None
    """CLIP's image encoder: (B, 3, S, S) float RGB in 0..255 to an object whose `patches` are (B, N, D)."""


class Loss(Protocol):
    """One term of the sum that a training step differentiates.

    A class whose constructor's parameters are its settings: a frozen dataclass, or an `nn.Module` if it has parameters
    that train. All of these must take part in every step. A class may also have `count` (see `Counted`).
    """

    def __call__(self, batch: Mapping[str, Any], outputs: Outputs, model: ModelView) -> "tuple[Tensor, Tensor]":
        """The sum of the loss over whatever it counts, and how much that is: neither is divided by anything.

        Args:
            batch: On the device, B crops of S x S pixels: `images` (B, 3, S, S) uint8 RGB, without colour jitter;
                `labels` (B, S, S) int64, class ids or the ignore index; `valid` (B, S, S) bool, inside the image;
                `structures` (B, M, S, S) uint8, the maps that the model predicts, and where it predicts structures of
                classes `structure_classes` (B, n, P, S, S), their planes of class ids; `cell_classes` and `cell_counts`
                (B, K, S / 8, S / 8), classes of each 8x8-px cell and their pixels, K = 0 where lambda_sac is 0;
                `sample_ids`, list of text. And the model's `ignore_index` and `grid`, for `count` sees only this.
            outputs: See `Outputs`.
            model: See `ModelView`.

        Returns:
            Sum and count, both () float; or (K,) for K means of their own, whose mean is the loss (a count of () is
            then that of each). Where nothing is counted, sum and count are 0, and so is the loss.
        """


@runtime_checkable
class Counted(Protocol):
    """A loss whose count follows from the batch alone.

    Where a step is spread over ranks or micro-batches, the count over all of them has to be known before the first part
    is differentiated. For a loss without this method every part goes through the network once more to find it.
    """

    def count(self, batch: Mapping[str, Any]) -> "Tensor":
        """What `__call__` returns second for this batch; the counts of its parts must add up to it."""
