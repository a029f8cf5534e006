"""What a training step differentiates: a batch to its losses, and how a batch that is spread keeps its means."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.augment import color_jitter
from ..data.dataset import Batch
from ..losses.total import loss_counts, total_loss
from ..model.backbones.clip import shared_prefix
from ..model.segmenter import Segmenter


class Objective(nn.Module):
    """A batch to its losses: jitter, text and image encoders, heads, and the sum of what the settings switch on."""

    def __init__(self, model: Segmenter, config: TrainConfig, classes: Sequence[str], ignore_index: int) -> None:
        super().__init__()
        self.model, self.config, self.ignore_index = model, config, ignore_index
        self.tokens = model.tokenize(classes)  # no buffer: they steer Python, so they stay on the CPU
        self.shared = shared_prefix(self.tokens[self.tokens[..., 0] != 0])

    def forward(self, batch: Batch, counts: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Scalars by name; `loss` is the sum to differentiate. `counts`: see `counts`, where the batch is a part."""
        images = batch["images"].float()
        if self.config.data.jitter:
            images = color_jitter(images, batch["jitter"], batch["valid"])
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            output = self.model(images, self.model.encode_text(self.tokens, self.shared))
        losses, structures = self.config.losses, self.config.model.structures
        return total_loss(output, batch, losses, ignore_index=self.ignore_index, structures=structures, counts=counts)

    @torch.no_grad()
    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """What the means of the losses divide by (losses.total.loss_counts).

        Batches differ in them: a step that is spread over ranks or micro-batches passes their mean to every part, and
        is then the same step however it is spread.
        """
        return loss_counts(batch, self.config.losses, ignore_index=self.ignore_index, grid=self.model.arch.grid)


def micro_batches(batch: Batch, number: int) -> Iterator[Batch]:
    """The batch in `number` equal parts, in order; views."""
    size = len(batch["sample_ids"]) // number
    for start in range(0, size * number, size):
        yield {key: value[start : start + size] for key, value in batch.items()}  # type: ignore[index, misc]
