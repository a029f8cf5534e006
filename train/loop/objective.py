"""What a training step differentiates: a batch to its losses, and how a batch that is spread keeps its means."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...common.errors import ConfigError
from ..config import TrainConfig
from ..data.augment import color_jitter
from ..data.dataset import Batch
from ..losses.interface import ModelView
from ..losses.total import build_losses, loss_counts, loss_sums, total_loss
from ..model.backbones.clip_text import shared_prefix
from ..model.segmenter import Segmenter, SegmenterOutput
from .process import random_state, set_random_state


class Objective(nn.Module):
    """A batch to its losses: jitter, text and image encoders, heads, and the sum of what the settings switch on."""

    prompts: Tensor
    present: Tensor

    def __init__(self, model: Segmenter, config: TrainConfig, classes: Sequence[str], ignore_index: int) -> None:
        super().__init__()
        self.model, self.config, self.classes, self.ignore_index = model, config, tuple(classes), ignore_index
        tokens = model.tokenize(classes)
        present = tokens[..., 0] != 0
        self.shared = shared_prefix(tokens[present])
        # On the device, for a copy of each step would wait for it.
        self.register_buffer("prompts", tokens[present], persistent=False)
        self.register_buffer("present", present, persistent=False)
        self.losses = build_losses(config.losses)
        # Only so are their parameters moved, shared between ranks, averaged and saved.
        modules = {name: loss for name, (loss, _) in self.losses.items() if isinstance(loss, nn.Module)}
        self.loss_modules = nn.ModuleDict(modules)

    def forward(self, batch: Batch, counts: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Scalars by name; `loss` is the sum to differentiate. `counts`: see `counts`, where the batch is a part."""
        output, model = self._outputs(batch)
        known: dict[str, Any] = {"ignore_index": self.ignore_index, "structures": model.structures, "model": model}
        return total_loss(output, batch, self.losses, counts=counts, **known)

    @torch.no_grad()
    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """What the means of the losses divide by, where the batch alone says it (losses.total.loss_counts).

        Batches differ in them: a step that is spread over ranks or micro-batches passes their mean to every part, and
        is then the same step however it is spread.
        """
        return loss_counts(batch, self.losses, ignore_index=self.ignore_index, grid=self.model.arch.grid)

    @torch.no_grad()
    def called_counts(self, batch: Batch, number: int, names: Collection[str]) -> dict[str, Tensor]:
        """The same of the losses named, from calling them on each of `number` micro-batches, after a forward pass."""
        losses = {name: self.losses[name] for name in names}
        counts: dict[str, Tensor] = {}
        random = random_state()
        for part in micro_batches(batch, number):
            output, model = self._outputs(part)
            for name, (_, count) in loss_sums(losses, output, part, model).items():
                counts[name] = counts[name] + count if name in counts else count
        set_random_state(random)  # a loss that draws will draw the same again
        return counts

    def _outputs(self, batch: Batch) -> tuple[SegmenterOutput, ModelView]:
        images = batch["images"].float()
        if self.config.data.jitter:
            images = color_jitter(images, batch["jitter"], batch["valid"])
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            texts = self.model.encode_prompts(self.prompts, self.present, self.shared)
            output = self.model(images, texts)
        return output, ModelView(
            ignore_index=self.ignore_index,
            grid=self.model.arch.grid,
            classes=self.classes,
            structures=self.config.model.structures,
            text_features=texts,
            encode_image=self.model.encode_image,
        )


def micro_batches(batch: Batch, number: int) -> Iterator[Batch]:
    """The batch in `number` equal parts, in order; views."""
    size = len(batch["sample_ids"]) // number
    for start in range(0, size * number, size):
        yield {key: value[start : start + size] for key, value in batch.items()}  # type: ignore[index, misc]


def check_batch_size(config: TrainConfig, ranks: int) -> None:
    """Raises ConfigError for a batch that cannot be spread evenly over that many ranks and their micro-batches."""
    size, parts = config.batch_size, ranks * config.accumulate
    if size % parts:
        spread, hint = f"{ranks} ranks x accumulate {config.accumulate}", "batch_size is that of all together"
        raise ConfigError(
            f"batch_size {size} cannot be spread evenly over {spread}", hint=f"{hint}: a multiple of {parts}"
        )
