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
    """What the network made of a batch of B crops: T classes, S structures, a grid of g x g patches, N = g * g.

    Floating: float32, or bfloat16 where the run has `precision = "bf16"`.
    """

    @property
    def logits(self) -> "Tensor":
        """(B, T, 4 g, 4 g) scores of each class, before upsampling and the sigmoid."""

    @property
    def structure_logits(self) -> "Tensor | None":
        """(B, S, 4 g, 4 g) scores of each structure; None where lambda_p is 0."""

    @property
    def similarity(self) -> "Tensor | None":
        """(B, N, T) similarities of patches and class texts / temperature, row by row; None where lambda_sac is 0."""


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
    """Names of the S structures that the model predicts."""
    text_features: "Tensor | None" = None
    """(T, P, D) embeddings of the classes' P prompts in this step, not normalised, with gradient where texts train."""
    encode_image: "Callable[[Tensor], Any] | None" = None
    """CLIP's image encoder: (B, 3, S, S) float RGB in 0..255 to an object whose `tokens` are (B, 1 + N, D)."""


class Loss(Protocol):
    """One term of the sum that a training step differentiates.

    A class whose constructor's parameters are its settings: a frozen dataclass, or an `nn.Module` if it has parameters
    that train. All parameters must take part in every step. A class may also have `count` (see `Counted`).
    """

    def __call__(self, batch: Mapping[str, Any], outputs: Outputs, model: ModelView) -> "tuple[Tensor, Tensor]":
        """The sum of the loss over whatever it counts, and how much that is.

        The step divides by the count over all ranks and micro-batches, so return neither a mean nor a sum that is
        weighted by the size of the batch. Nothing is trained through the count.

        Args:
            batch: Tensors on the device, B crops of side S in pixels: `images` (B, 3, S, S) uint8 RGB, without colour
                jitter; `labels` (B, S, S) int64, class ids or the ignore index; `valid` (B, S, S) bool, inside the
                image; `structures` (B, S', S, S) uint8, the maps of the model's S' structures, S' = 0 where lambda_p is
                0; `cell_classes` and `cell_counts` (B, K, S / 8, S / 8), classes of each 8x8-px cell and their pixels,
                K = 0 where lambda_sac is 0; `sample_ids`, list of text. And two numbers, `ignore_index` and `grid` as
                the model has them, because `count` sees nothing else.
            outputs: See `Outputs`.
            model: See `ModelView`.

        Returns:
            Sum and count, both () float; or (K,), K means of their own (a count of () is that of each): the loss is
            then the mean of the K quotients. Counted nothing: a sum of 0 and a count of 0 are a loss of 0.
        """


@runtime_checkable
class Counted(Protocol):
    """A loss whose count follows from the batch alone.

    Where a step is spread over ranks or micro-batches, the count over all of them has to be known before the first part
    is differentiated. A loss without this method is called once more for it, after a forward pass without gradients.
    """

    def count(self, batch: Mapping[str, Any]) -> "Tensor":
        """What `__call__` returns second for this batch; parts of a batch must add up to the batch."""
