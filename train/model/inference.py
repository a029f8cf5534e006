"""Whole images to class probabilities and label maps: the first resize, CAT-Seg's sliding windows, one look at all.

The probabilities of T classes at an image's own size can be far larger than the image: 847 classes at 2048x1536 are
10 GB. So classes are brought to full size a few at a time, and a label map keeps only the running best. Before that, an
eighth of the memory goes to what the network holds for a few classes at a time, half to what it holds for all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...common.errors import ConfigError
from ..errors import ShapeError
from .bounded import bounded_parts
from .cost_aggregator import ABSENT_LOGIT
from .device import matmul_precision
from .segmenter import Segmenter

FirstResize = Literal["short-640", "none"]
SHORT_EDGE_PX, LONG_EDGE_PX = 640, 2560

PRECISION: Literal["tf32"] = "tf32"
"""Precision of every prediction, as in the reference; on a CPU it is float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceSettings:
    """How an image is cut and how much is held at once. The defaults are the published protocol.

    Raises:
        ConfigError: A number is not positive, or the windows do not cover the canvas.
    """

    first_resize: FirstResize = "short-640"
    """What `first_resize` does to an image before anything else."""
    windows: bool = True
    """Whether windows are predicted besides the whole image. Without them it is a fifth of the work."""
    window_px: int = 0
    """Side of a window, and of the whole image as the network sees it, in pixels. 0: the model's crops, 384 for 24x24
    patches."""
    stride_px: int = 0
    """Pixels from one window to the next. 0: two thirds of a window."""
    canvas_px: int = 0
    """Side of the square that the image is resized to before it is cut, in pixels. 0: a window and a stride."""
    classes_kept: int | None = None
    """Number of classes that are aggregated in each crop, those of the highest cosines. None: the model's `pad_len`."""
    batch_windows: int = 5
    """Number of crops that go through the network together, if `memory_bytes` allows."""
    memory_bytes: int = 2 * 2**30
    """Bound on the bytes that prediction holds besides weights, image and result."""

    def __post_init__(self) -> None:
        if self.first_resize not in get_args(FirstResize):
            raise ConfigError(f"first_resize: expected {' or '.join(get_args(FirstResize))}, got {self.first_resize!r}")
        sizes = (self.window_px, self.stride_px, self.canvas_px)
        if min(sizes) < 0:
            raise ConfigError(f"window_px, stride_px, canvas_px: expected positive numbers, or 0, got {sizes}")
        for name in ("classes_kept", "batch_windows", "memory_bytes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name}: expected a positive number, got {value}")
        if all(sizes) and (self.stride_px > self.window_px or (self.canvas_px - self.window_px) % self.stride_px):
            windows = f"windows of {self.window_px} px at stride {self.stride_px}"
            hint = "canvas_px - window_px must be a multiple of stride_px, and stride_px at most window_px"
            raise ConfigError(f"{windows} do not cover {self.canvas_px} px exactly", hint=hint)

    def fitted(self, crop_px: int) -> "InferenceSettings":
        """Sizes in full, for crops of this side (384: windows of 384 at 256 on 640). Raises ConfigError for gaps."""
        window = self.window_px or crop_px
        stride = self.stride_px or round(window * 2 / 3)
        return replace(self, window_px=window, stride_px=stride, canvas_px=self.canvas_px or window + stride)

    @property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """Top left corners (y, x) of the windows on the canvas."""
        steps = range(0, self.canvas_px - self.window_px + 1, self.stride_px)
        return tuple((y, x) for y in steps for x in steps) if self.windows else ()

    def crops_at_once(self, bytes_each: int) -> int:
        """Number of crops of a batch that fit into half of the memory, where each holds `bytes_each`."""
        return max(1, min(self.batch_windows, self.memory_bytes // 2 // bytes_each))


PUBLISHED = InferenceSettings()


def class_texts(model: Segmenter, classes: Sequence[str]) -> Tensor:
    """Text features (T, P, D) to predict among these classes with, without gradients; synonyms separated by commas."""
    with torch.no_grad(), matmul_precision(PRECISION):
        return model.encode_text(model.tokenize(classes))


def first_resize(image: npt.NDArray[np.uint8], settings: InferenceSettings = PUBLISHED) -> npt.NDArray[np.uint8]:
    """An image as detectron2's mapper hands it to the reference: short edge 640 px, but long edge at most 2560.

    By Pillow's bilinear interpolation on bytes, which widens its support where it makes smaller: fine stripes become
    grey there, where plain interpolation, which comes after it, would alias. All that predicts whole images begins here
    (`INPUT.MIN_SIZE_TEST` and `MAX_SIZE_TEST` of the reference, sizes rounded as ResizeShortestEdge rounds them).

    The image is (H, W, 3) uint8 RGB; the settings' `first_resize` "none" leaves it as it is.

    Raises:
        ShapeError: The image is of another kind.
    """
    _check_image(image)
    if settings.first_resize == "none":
        return image
    height, width = image.shape[:2]
    scale = min(SHORT_EDGE_PX / min(height, width), LONG_EDGE_PX / max(height, width))
    size = max(1, int(scale * width + 0.5)), max(1, int(scale * height + 0.5))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def segment_image(
    model: Segmenter, image: npt.NDArray[np.uint8], text_features: Tensor, settings: InferenceSettings = PUBLISHED
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """`predict_label_map` after the first resize, at the image's own size."""
    return predict_label_map(model, first_resize(image, settings), text_features, settings, size=image.shape[:2])


class Segmented(NamedTuple):
    """What `segment_with_scores` finds in an image (H, W) among T classes."""

    labels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    """The most probable class of every pixel, (H, W), as `segment_image` gives it."""
    confidence: npt.NDArray[np.float32]
    """Probability of that class, (H, W), in [0, 1]."""
    highest: npt.NDArray[np.float32]
    """Highest probability of each class at any pixel, (T,), in [0, 1]; 0 for one that `classes_kept` leaves out."""


def segment_with_scores(
    model: Segmenter, image: npt.NDArray[np.uint8], text_features: Tensor, settings: InferenceSettings = PUBLISHED
) -> Segmented:
    """`segment_image`, and how probable what it says is."""
    best, entering = BestClass(), first_resize(image, settings)
    highest = torch.zeros(len(text_features), device=text_features.device)
    for ids, maps in probability_maps(model, entering, text_features, settings, size=image.shape[:2]):
        best.add(ids, maps)
        # Read at the end: the host waits for no part of the classes.
        highest[ids.to(highest.device, non_blocking=True)] = maps.amax(dim=(1, 2)).float()
    return Segmented(best.label_map(len(text_features)), best.confidence(), highest.cpu().numpy())


def predict_probabilities(
    model: Segmenter,
    image: npt.NDArray[np.uint8],
    text_features: Tensor,
    settings: InferenceSettings = PUBLISHED,
    *,
    size: tuple[int, int] | None = None,
) -> npt.NDArray[np.float32]:
    """Probabilities (T, H, W) in [0, 1], float32, of independent classes: a pixel's need not sum to 1.

    The image is uint8 RGB after the first resize (h, w, 3), the result of its `size` (H, W) unless another is given.
    `text_features` are (T, P, D) as `Segmenter.encode_text` gives them. The model's mode is kept. Raises ShapeError for
    an image of another kind.
    """
    probabilities = np.zeros((len(text_features), *(size or image.shape[:2])), dtype=np.float32)
    for ids, maps in probability_maps(model, image, text_features, settings, size=size):
        probabilities[ids.numpy()] = maps.float().cpu().numpy()
    return probabilities


def predict_label_map(
    model: Segmenter,
    image: npt.NDArray[np.uint8],
    text_features: Tensor,
    settings: InferenceSettings = PUBLISHED,
    *,
    size: tuple[int, int] | None = None,
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """The most probable class of every pixel. Arguments and errors as for `predict_probabilities`.

    Returns ids (H, W), the lower id on a tie: uint8 for at most 255 classes, else uint16, as label maps are stored.
    """
    best = BestClass()
    for ids, maps in probability_maps(model, image, text_features, settings, size=size):
        best.add(ids, maps)
    return best.label_map(len(text_features))


class BestClass:
    """The most probable class of every pixel, from maps of a few classes at a time, in ascending order."""

    def __init__(self) -> None:
        self._best: tuple[Tensor, Tensor] | None = None

    def add(self, ids: Tensor, maps: Tensor) -> None:
        """Probabilities (c, H, W) of the classes `ids` (c,), which are on the CPU."""
        highest, index = maps.max(dim=0)
        found = ids.to(maps.device, non_blocking=True)[index]
        if self._best is None:
            self._best = highest, found
            return
        best, labels = self._best
        better = highest > best
        self._best = torch.where(better, highest, best), torch.where(better, found, labels)

    def label_map(self, num_classes: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """What `predict_label_map` returns."""
        assert self._best is not None
        found: npt.NDArray[np.int64] = self._best[1].cpu().numpy()
        return found.astype(np.uint8) if num_classes <= 255 else found.astype(np.uint16)

    def confidence(self) -> npt.NDArray[np.float32]:
        """Probability (H, W) of that class."""
        assert self._best is not None
        return np.asarray(self._best[0].float().cpu().numpy())


@torch.no_grad()
def probability_maps(
    model: Segmenter,
    image: npt.NDArray[np.uint8],
    text_features: Tensor,
    settings: InferenceSettings,
    *,
    size: tuple[int, int] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """As `predict_probabilities`, for a few classes at a time: ids (c,) in ascending order, on the CPU; maps (c, H, W).

    Under `classes_kept`, classes that no crop keeps are left out: the sigmoid of `ABSENT_LOGIT` is 0 in float32. Class
    0 never is, so that the lower id wins where all are 0. By default none is: merging other numbers of classes at a
    time can change a last bit, and results of before keep theirs. Which they are is all that the host reads here.
    """
    _check_image(image)
    settings = settings.fitted(model.arch.crop_px)
    height, width = size or image.shape[:2]
    # A copy: what Pillow or a memory map gives must not be written to, and a tensor on it could be.
    crops = cut(torch.from_numpy(np.array(image)).to(text_features.device, non_blocking=True), settings)
    was_training = model.training
    model.eval()
    try:
        at_once = settings.crops_at_once(model.crop_bytes(len(text_features), settings.classes_kept))
        for part in bounded_parts(model):
            part.working_bytes = settings.memory_bytes // 8
        with matmul_precision(PRECISION):
            for start in range(0, len(crops), at_once):
                found = model(crops[start : start + at_once], text_features, settings.classes_kept).logits
                if start == 0:
                    logits = found.new_empty(len(crops), *found.shape[1:])
                logits[start : start + at_once] = found
    finally:
        model.train(was_training)
    # Per class: upsampled windows before and after the sigmoid, the canvas and what is added to it, the full-size map.
    pixels = 2 * len(crops) * settings.window_px**2 + 3 * settings.canvas_px**2 + 2 * height * width
    count = max(1, settings.memory_bytes // 4 // (4 * pixels))
    classes = torch.arange(logits.shape[1])
    if settings.classes_kept is not None:
        present = (logits > ABSENT_LOGIT).flatten(2).any(dim=2).any(dim=0).cpu()
        present[0] = True
        classes = classes[present]
    for ids in torch.split(classes, count):
        yield ids, merge(logits[:, ids.to(logits.device, non_blocking=True)], settings, (height, width))


def _check_image(image: npt.NDArray[np.uint8]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ShapeError(f"image: expected uint8 (H, W, 3) RGB, got {image.dtype} {image.shape}")


def cut(image: Tensor, settings: InferenceSettings) -> Tensor:
    """Crops of an image (H, W, 3) uint8, (n, 3, window, window) float: windows in reading order, then the whole.

    The settings are in full (`fitted`).
    """
    planes = image.permute(2, 0, 1)[None].float()
    window, canvas_px = settings.window_px, settings.canvas_px
    canvas = F.interpolate(planes, size=(canvas_px, canvas_px), mode="bilinear", align_corners=False)
    crops = [canvas[:, :, y : y + window, x : x + window] for y, x in settings.offsets]
    whole = F.interpolate(planes, size=(window, window), mode="bilinear", align_corners=False)
    return torch.cat([*crops, whole])


def merge(logits: Tensor, settings: InferenceSettings, size: tuple[int, int]) -> Tensor:
    """Logits (n, c, h, w) of the crops that `cut` gives to probabilities (c, H, W) at the image's own size.

    Windows are averaged where they overlap; then the mean of that and of the whole image's map is taken.
    """
    window, canvas_px = settings.window_px, settings.canvas_px
    maps = F.interpolate(logits, size=(window, window), mode="bilinear", align_corners=False).sigmoid()
    merged = maps[-1:]
    if settings.windows:
        total = maps.new_zeros(1, maps.shape[1], canvas_px, canvas_px)
        cover = maps.new_zeros(1, 1, canvas_px, canvas_px)
        for (y, x), part in zip(settings.offsets, maps[:-1], strict=True):
            total[:, :, y : y + window, x : x + window] += part
            cover[:, :, y : y + window, x : x + window] += 1
        whole = F.interpolate(merged, size=(canvas_px, canvas_px), mode="bilinear", align_corners=False)
        merged = (total / cover + whole) / 2
    if merged.shape[-2:] != size:
        merged = F.interpolate(merged, size=size, mode="bilinear", align_corners=False)
    return merged[0]
