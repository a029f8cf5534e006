"""Pretrain the demo's CLIP on generated scenes and their captions: no label of a pixel, no photograph.

A caption fits a picture if what it says of some part of it is true: the logit is a log-mean-exp over the cosines of the
text with every patch, on the path that dense features are read from, and the loss a sigmoid's for every pair of the
batch (Zhai et al. 2023, SigLIP). Most steps take many small crops, the last ones few large ones (Li et al. 2023,
CLIPA): few patches leave little doubt which of them a caption is about. On large crops alone colours are learned and
patterns are not, within the same time.

Everything follows from the seed and the step. So an interrupted pretraining resumes, and on one machine with one number
of threads ends with the same bytes.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from ...common.atomic import atomic_write
from ...common.progress import ProgressBar
from ...common.settings import check_ranges, to_dict
from ..model.backbones.clip import Clip
from ..model.text import clip_tokens
from ..optim import learning_rate_factor
from ..runs import checkpoint
from ..runs.run_folder import RunFolder
from ..runs.run_log import RunLog
from ..weights.clip_weights import load_clip_weights
from .drawing import UInt8
from .regime import GROUPS, TEST_SPLITS, drawn
from .results import score_group
from .world import MARGIN_PX, SIDE_PX, Caption, Scene, Thing, captions, claims_of, random_scene, word_captions, words
from .zero_shot import ARCHITECTURE, patch_embeds, score, text_embeds

WEIGHTS = "scenes.safetensors"
CAPTIONS, MISTAKEN = 2, 1
"""Captions of a crop, true ones and mistaken ones, in a step's first `batch_size` crops; besides there is one for each
word of the world."""
SMALL_PX, SMALL_SHARE, MORE = 64, 0.75, 8
"""Side of the small crops, the share of steps that takes them, and how many times as many there are in such a step."""
CLEAR, HIDDEN = 350, 60
"""Least number of pixels that a caption may be about, and below which nothing counts as there. Between them, it is left
open whether a caption fits."""
_FITTING_WEIGHT = 4.0  # of pairs that fit: they are few
_TRAINING, _HELD_OUT = 0, 1
_SAVE_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainSettings:
    """What decides the weights."""

    steps: int = 6000
    """Number of steps."""
    seed: int = 0
    """Seed of the weights, the scenes, the captions and their order."""
    scenes: int = 6000
    """Number of scenes. They are kept in memory, 170 KB each, and shown again in other crops with other captions."""
    batch_size: int = 32
    """Number of large crops in a step."""
    learning_rate: float = 1.5e-3
    """The largest, reached after a fiftieth of the steps; then it falls along a cosine to 0."""
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        check_ranges(self, steps="[1, 1e7]", seed="[0, 1e18]", scenes="[1, 1e6]", batch_size="[1, 1e4]")


class Contrast(nn.Module):
    """A CLIP that knows the words of the captions only, and the logit that captions are compared with pictures by."""

    def __init__(self) -> None:
        super().__init__()
        # Ascending, so that the last of them ends a text, as in the whole vocabulary.
        self.known = torch.from_numpy(np.unique(clip_tokens(words()).numpy()))
        self.clip = Clip(replace(ARCHITECTURE, vocabulary_size=len(self.known)))
        self.logit_scale = nn.Parameter(torch.tensor(2.3))
        self.logit_bias = nn.Parameter(torch.tensor(-3.0))

    def forward(self, images: Tensor, texts: list[str]) -> Tensor:
        """Logits (B, M) of whether each text fits each of the images (B, 3, S, S), uint8."""
        embeds = F.normalize(self.clip.encode_text(torch.searchsorted(self.known, clip_tokens(texts))), dim=-1)
        cosines = patch_embeds(self.clip, images) @ embeds.T
        pooled = torch.logsumexp(cosines * self.logit_scale.exp(), dim=1) - math.log(cosines.shape[1])
        return pooled + self.logit_bias

    def file(self) -> bytes:
        """A safetensors file in half precision, of the token embedding the rows of known tokens."""
        state = {name: value.detach().half().contiguous() for name, value in self.clip.state_dict().items()}
        return save(state | {"text.token_embedding.rows": self.known})


def pretrain(out: Path, settings: PretrainSettings, *, stop_at: int | None = None, say: Callable[[str], None]) -> Path:
    """Pretrain into the folder `out`, resuming from its checkpoint if it has one; returns the file of weights.

    `stop_at` is a step to end at early, as an interruption would.

    Raises:
        RunFolderError: The folder was made with other settings, or another process is training in it.
        CheckpointError: The folder's checkpoint is torn.
    """
    folder, last = RunFolder(out), min(settings.steps, stop_at or settings.steps)
    torch.manual_seed(settings.seed)
    model = Contrast()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=settings.weight_decay)
    sizes = to_dict(ARCHITECTURE)
    with folder.locked():
        folder.begin_or_check(model=sizes, training=to_dict(settings), data=None)
        if step := checkpoint.resume_last(folder.checkpoints, model, optimizer, sizes):
            say(f"{out}: resumes at step {step} of {settings.steps}")
        saved = time.monotonic()
        bar = ProgressBar(_batches(settings, range(step, last)), total=last, initial=step, desc="pretrain", unit="step")
        with RunLog(folder.log_file, folder.tensorboard, start_step=step) as log:
            for images, texts, fits, known in bar:
                factor = learning_rate_factor(step, settings.steps, warmup=settings.steps // 50)
                optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
                logits = model(images, texts)
                loss = F.binary_cross_entropy_with_logits(logits, fits, known, pos_weight=torch.tensor(_FITTING_WEIGHT))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                if step % 50 == 0 or step == last:
                    log.scalars(step, {"loss": float(loss.detach())})
                    bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
                if time.monotonic() - saved > _SAVE_EVERY_S or step == last:
                    checkpoint.require_finite(model, step=step)
                    checkpoint.save_last(folder.checkpoints, model, optimizer, sizes, step)
                    saved = time.monotonic()
    atomic_write(out / WEIGHTS, model.file())
    return out / WEIGHTS


def _batches(settings: PretrainSettings, steps: range) -> Iterator[tuple[Tensor, list[str], Tensor, Tensor]]:
    """Of each step crops (B, 3, S, S), texts, which text fits which crop (B, M), and whether that counts (B, M)."""
    draw = cache(lambda index: _scene(settings.seed, _TRAINING, index))
    order = cache(lambda epoch: np.random.default_rng([settings.seed, 2, epoch]).permutation(settings.scenes))
    for step in steps:
        rng = np.random.default_rng([settings.seed, 3, step])
        small = step < SMALL_SHARE * settings.steps
        side, count = (SMALL_PX, MORE * settings.batch_size) if small else (SIDE_PX, settings.batch_size)
        places = [divmod(step * MORE * settings.batch_size + index, settings.scenes) for index in range(count)]
        crops = [cropped(draw(order(epoch)[index]), side, rng) for epoch, index in places]
        told = word_captions(rng)
        for crop in crops[: settings.batch_size]:
            told += captions(crop.clear, CAPTIONS, rng, mistaken=MISTAKEN) if crop.clear else []
        images = torch.from_numpy(np.stack([crop.image for crop in crops]))
        fits, maybe = (_fits(told, [getattr(crop, part) for crop in crops]) for part in ("clear", "visible"))
        yield images, [caption.text for caption in told], fits, 1 - (maybe - fits)


def _scene(seed: int, kind: int, index: int) -> Scene:
    return random_scene(np.random.default_rng([seed, kind, index]))


class Crop(NamedTuple):
    image: UInt8
    """(3, S, S)."""
    clear: list[Thing | str]
    """Contents that at least `CLEAR` pixels show."""
    visible: list[Thing | str]
    """Contents that at least `HIDDEN` pixels show."""


def cropped(scene: Scene, side: int, rng: np.random.Generator) -> Crop:
    """A square somewhere in a scene, mirrored or not."""
    top, left = rng.integers(0, SIDE_PX + MARGIN_PX - side + 1, 2)
    window = slice(top, top + side), slice(left, left + side)
    image, part = scene.image[window], scene._replace(places=scene.places[window])
    mirrored = (image[:, ::-1] if rng.random() < 0.5 else image).transpose(2, 0, 1)
    return Crop(np.ascontiguousarray(mirrored), part.visible(CLEAR), part.visible(HIDDEN))


def _fits(told: Sequence[Caption], pictures: Iterable[list[Thing | str]]) -> Tensor:
    there = [claims_of(contents) for contents in pictures]
    return torch.tensor([[float(caption.claims <= claims) for caption in told] for claims in there])


@torch.inference_mode()
def judge(weights: Path, *, seed: int = 0, pairs: int = 256, scenes: int = 100) -> dict[str, float]:
    """What a file of weights does without any further training, on held-out scenes; fractions.

    `image to text` and `text to image`: share of `pairs` scenes and captions that find their own partner first.
    The others are mIoU of each test split's group of classes, while all names of the regime compete: of each pixel the
    name with the greatest cosine, interpolated between patches.
    """
    clip = Clip(ARCHITECTURE).eval()
    load_clip_weights(clip, weights)
    rng = np.random.default_rng([seed, _HELD_OUT])
    crops = [cropped(_scene(seed, _HELD_OUT, index), SIDE_PX, rng) for index in range(pairs)]
    texts = text_embeds(clip, [captions(crop.clear, 1, rng)[0].text for crop in crops])
    images = torch.cat([patch_embeds(clip, torch.from_numpy(crop.image)[None]) for crop in crops])
    logits = torch.stack([torch.logsumexp(each @ texts.T * 10, dim=0) for each in images])
    own = torch.arange(pairs)
    found = {
        "image to text": float((logits.argmax(dim=1) == own).float().mean()),
        "text to image": float((logits.argmax(dim=0) == own).float().mean()),
    }
    names = [name for group in GROUPS.values() for name in group]
    for split in TEST_SPLITS:
        confusion = score(clip, drawn(split, names, scenes, seed + 1), names)
        members = [names.index(name) for name in GROUPS.get(split, GROUPS["seen"])]
        found[f"mIoU, {split}"] = score_group(confusion, members).miou
    return found
