"""How a detector like the package's own is made, from nothing to its weights: `physseg superpoint reproduce`.

Shapes teach it what a corner is. Then it labels generated textures by homographic adaptation and is trained on its own
labels, round after round, with shapes among them. The result lies between what the shapes and what the last round end
with, weight by weight (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"). That gives back on shapes most
of what the rounds lose, and keeps on photographs most of what they gain. Every part is one of the other commands and
resumes as that does. The weights in the package were made so; their card has the figures.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from ...common.atomic import atomic_write
from ...structure_extractors.superpoint.inference import read_weights
from .labelling import LabelSettings, label, write_textures
from .loop import WEIGHTS, train
from .pictures.sources import Shapes, labelled_source
from .settings import TrainSettings, further_settings

# A low threshold, and few points are taken: which corners of a soft picture are its best.
LABELS = LabelSettings(adaptation=32, threshold=0.005, max_points=300)


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One round of labelling and training."""

    textures: int  # number of pictures
    textures_seed: int  # seed of the pictures
    steps: int  # number of training steps
    shapes: float  # share of shapes among the training pictures
    seed: int  # seed of the training


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything the weights depend on besides the machine's arithmetic."""

    shape_steps: int = 8400  # number of training steps on shapes
    batch_size: int = 32  # number of pictures per step
    labels: LabelSettings = LABELS
    rounds: tuple[Round, ...] = (
        Round(textures=250, textures_seed=0, steps=1000, shapes=0.3, seed=1),
        Round(textures=250, textures_seed=0, steps=1500, shapes=0.5, seed=2),
        Round(textures=300, textures_seed=3, steps=3000, shapes=0.5, seed=3),
        Round(textures=300, textures_seed=4, steps=3000, shapes=0.6, seed=4),
    )
    # About as many keypoints on a photograph as there are without tiles and grains at 0.015, the default otherwise.
    threshold: float = 0.04
    share_of_shapes: float = 1 / 3  # of what the shapes end with in the result; the rest is of the last round


def reproduce(
    folder: Path, recipe: Recipe, *, precision: str, device: str, workers: int | None, say: Callable[[str], None]
) -> Path:
    """Make a detector by a recipe, resuming what was interrupted; returns its file of weights.

    All that is made on the way stays in `folder`. The other arguments are those of `train`.
    """
    settings = TrainSettings(steps=recipe.shape_steps, seed=0, batch_size=recipe.batch_size, precision=precision)
    of_shapes = weights = train(Shapes(), settings, folder / "shapes", device=device, workers=workers, say=say)
    for number, part in enumerate(recipe.rounds, start=1):
        say(f"round {number} of {len(recipe.rounds)}")
        textures = folder / f"textures{part.textures_seed}_{part.textures}"
        write_textures(textures, number=part.textures, seed=part.textures_seed, size=recipe.labels.size)
        labels = folder / f"labels{number}.npz"
        label(textures, labels, weights, replace(recipe.labels, precision=precision), device=device, say=say)
        settings = further_settings(steps=part.steps, seed=part.seed, batch_size=recipe.batch_size, precision=precision)
        source = labelled_source(textures, labels, part.shapes, settings.size)
        run = folder / f"round{number}"
        weights = train(source, settings, run, start=weights, device=device, workers=workers, say=say)
    first, last = (load_safetensors(read_weights(path)) for path in (of_shapes, weights))
    between = {key: torch.lerp(last[key].float(), first[key].float(), recipe.share_of_shapes).half() for key in last}
    atomic_write(folder / WEIGHTS, save_safetensors(between, {"threshold": str(recipe.threshold)}))
    return folder / WEIGHTS
