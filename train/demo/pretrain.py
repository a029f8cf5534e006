"""Pretrain the demo's CLIP on generated scenes and their captions: no label of a pixel, no photograph.

A caption fits a picture if what it says of some part of it is true: the logit is a log-mean-exp over the cosines of the
text with every patch, on the path that dense features are read from, and the loss a sigmoid's for every pair of the
batch (Zhai et al. 2023, SigLIP). Everything follows from the seed and the step. So an interrupted pretraining resumes,
and on one machine with one number of threads ends with the same bytes.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from ...common.atomic import atomic_write, remove_partials
from ...common.progress import ProgressBar
from ...common.settings import check_ranges, to_dict
from ..evaluation.metrics import ConfusionMatrix
from ..model.backbones.clip import Clip, as_map
from ..model.backbones.clip_presets import CLIP_PRESETS
from ..model.text import clip_tokens
from ..optim import learning_rate_factor
from ..runs import checkpoint
from ..runs.checkpoint import CheckpointState
from ..runs.run_folder import RunFolder
from ..runs.run_log import RunLog
from ..weights.clip_weights import load_clip_weights
from .drawing import IGNORE_INDEX, UInt8
from .regime import GROUPS, TEST_SPLITS, drawn
from .results import score_group
from .world import MARGIN_PX, SIDE_PX, Caption, Thing, captions, claims_of, random_scene, word_captions, words

ARCHITECTURE = CLIP_PRESETS["tiny"].adapted(image_px=SIDE_PX)
WEIGHTS = "scenes.safetensors"
CAPTIONS, MISTAKEN = 4, 2
"""Captions of each picture in a step, true ones and mistaken ones; besides there is one for each word of the world."""
_TRAINING, _HELD_OUT = 0, 1
_SAVE_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainSettings:
    """What decides the weights."""

    steps: int = 4000
    """Number of steps."""
    seed: int = 0
    """Seed of the weights, the scenes, the captions and their order."""
    scenes: int = 6000
    """Number of scenes. They are kept in memory, 130 KB each, and shown again with other captions."""
    batch_size: int = 32
    learning_rate: float = 1e-3
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
        text_embeds = F.normalize(self.clip.encode_text(torch.searchsorted(self.known, clip_tokens(texts))), dim=-1)
        cosines = patch_embeds(self.clip, images) @ text_embeds.T
        pooled = torch.logsumexp(cosines * self.logit_scale.exp(), dim=1) - math.log(cosines.shape[1])
        return pooled + self.logit_bias

    def file(self) -> bytes:
        """A safetensors file in half precision, of the token embedding the rows of known tokens."""
        state = {name: value.detach().half().contiguous() for name, value in self.clip.state_dict().items()}
        return save(state | {"text.token_embedding.rows": self.known})


def patch_embeds(clip: Clip, images: Tensor) -> Tensor:
    """Unit vectors (B, N, D) of the patches of images (B, 3, S, S), uint8."""
    mean, std = (torch.tensor(three)[:, None, None] for three in (clip.arch.image_mean, clip.arch.image_std))
    return F.normalize(clip.encode_image((images / 255 - mean) / std).patches, dim=-1)


def text_embeds(clip: Clip, texts: Sequence[str]) -> Tensor:
    """Unit vectors (M, D) of texts."""
    return F.normalize(clip.encode_text(clip.tokenize(texts)), dim=-1)


def pretrain(out: Path, settings: PretrainSettings, *, stop_at: int | None = None, say: Callable[[str], None]) -> Path:
    """Pretrain into the folder `out`, resuming from its checkpoint if it has one; returns the file of weights.

    Args:
        stop_at: Step to end at early, as an interruption would.

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
        current = {"model": sizes, "training": to_dict(settings), "data": None}
        if folder.exists():
            folder.check_same(current)
        else:
            folder.create(**current)
        remove_partials(folder.checkpoints)
        step = 0
        if checkpoint.steps(folder.checkpoints):
            path = checkpoint.path_of(folder.checkpoints, None)
            step = checkpoint.load_model(path, model, sizes).step
            optimizer.load_state_dict(checkpoint.load_trainer(path)["optimizer"])
            say(f"{out}: resumes at step {step} of {settings.steps}")
        saved = time.monotonic()
        bar = ProgressBar(_batches(settings, range(step, last)), total=last, initial=step, desc="pretrain", unit="step")
        with RunLog(folder.log_file, folder.tensorboard, start_step=step) as log:
            for images, texts, fits in bar:
                factor = learning_rate_factor(step, settings.steps, warmup=settings.steps // 50)
                optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
                loss = F.binary_cross_entropy_with_logits(model(images, texts), fits)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                if step % 50 == 0 or step == last:
                    log.scalars(step, {"loss": float(loss.detach())})
                    bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
                if time.monotonic() - saved > _SAVE_EVERY_S or step == last:
                    state = CheckpointState(step=step, model=sizes, classes=(), data=None)
                    checkpoint.save(
                        folder.checkpoints, state, model.state_dict(), {"optimizer": optimizer.state_dict()}
                    )
                    checkpoint.prune(folder.checkpoints, keep_last=1)
                    saved = time.monotonic()
    atomic_write(out / WEIGHTS, model.file())
    return out / WEIGHTS


def _batches(settings: PretrainSettings, steps: range) -> Iterator[tuple[Tensor, list[str], Tensor]]:
    """Of each step images (B, 3, S, S), texts, and which text fits which image (B, M): 1 or 0."""
    draw = cache(lambda index: _pictured(settings.seed, _TRAINING, index))
    order = cache(lambda epoch: np.random.default_rng([settings.seed, 2, epoch]).permutation(settings.scenes))
    for step in steps:
        rng = np.random.default_rng([settings.seed, 3, step])
        places = [divmod(step * settings.batch_size + index, settings.scenes) for index in range(settings.batch_size)]
        pictures = [draw(order(epoch)[index]) for epoch, index in places]
        images = [_cropped(image, rng) for image, _ in pictures]
        told = word_captions(rng)
        told += [caption for _, visible in pictures for caption in captions(visible, CAPTIONS, rng, mistaken=MISTAKEN)]
        yield torch.from_numpy(np.stack(images)), [caption.text for caption in told], _fits(pictures, told)


def _pictured(seed: int, kind: int, index: int) -> tuple[UInt8, list[Thing | str]]:
    scene = random_scene(np.random.default_rng([seed, kind, index]))
    return scene.image, scene.visible()


def _cropped(image: UInt8, rng: np.random.Generator) -> UInt8:
    """A square (3, S, S) somewhere in a scene, mirrored or not."""
    top, left = rng.integers(0, MARGIN_PX + 1, 2)
    part = image[top : top + SIDE_PX, left : left + SIDE_PX]
    return np.ascontiguousarray((part[:, ::-1] if rng.random() < 0.5 else part).transpose(2, 0, 1))


def _fits(pictures: Sequence[tuple[UInt8, list[Thing | str]]], told: Sequence[Caption]) -> Tensor:
    there = [claims_of(visible) for _, visible in pictures]
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
    pictures = [_pictured(seed, _HELD_OUT, index) for index in range(pairs)]
    texts = text_embeds(clip, [captions(visible, 1, rng)[0].text for _, visible in pictures])
    images = torch.cat([patch_embeds(clip, torch.from_numpy(_cropped(image, rng))[None]) for image, _ in pictures])
    logits = torch.stack([torch.logsumexp(each @ texts.T * 10, dim=0) for each in images])
    own = torch.arange(pairs)
    found = {
        "image to text": float((logits.argmax(dim=1) == own).float().mean()),
        "text to image": float((logits.argmax(dim=0) == own).float().mean()),
    }
    names = [name for group in GROUPS.values() for name in group]
    texts = text_embeds(clip, names)
    for split in TEST_SPLITS:
        confusion = ConfusionMatrix(num_classes=len(names), ignore_index=IGNORE_INDEX)
        for image, labels in drawn(split, names, scenes, seed + 1):
            part = patch_embeds(clip, torch.from_numpy(image[:SIDE_PX, :SIDE_PX].transpose(2, 0, 1))[None])
            cosines = as_map(part @ texts.T, ARCHITECTURE.grid)
            scores = F.interpolate(cosines, size=(SIDE_PX, SIDE_PX), mode="bilinear")[0]
            confusion.update(scores.argmax(dim=0), labels[:SIDE_PX, :SIDE_PX])
        members = [names.index(name) for name in GROUPS.get(split, GROUPS["seen"])]
        found[f"mIoU, {split}"] = score_group(confusion, members).miou
    return found
