"""What a backbone is: an image encoder with dense tokens, and a text encoder into the same space.

The interface is provisional: entry points of the group `physseg.backbones` are found and listed, and no model is built
from one yet. `Segmenter` keeps it.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the public names load without torch
    from torch import Tensor

    from .clip import DenseFeatures


class Backbone(Protocol):
    """Images to dense tokens, class names to features, both differentiable and not normalised."""

    def encode_image(self, images: "Tensor", keep_blocks: Collection[int] = ()) -> "DenseFeatures":
        """Tokens (B, 1 + N, D) of crops (B, 3, S, S), float RGB in 0..255; and outputs of the blocks asked for."""

    def tokenize(self, names: Sequence[str]) -> "Tensor":
        """Token ids (T, P, L) of T class names in P prompts each, on the CPU."""

    def encode_text(self, tokens: "Tensor") -> "Tensor":
        """Features (T, P, D) of what `tokenize` gave."""
