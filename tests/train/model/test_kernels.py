"""Which kernels a training step asks for: few calls of attention, convolutions over channels that lie together."""

from collections import Counter
from typing import Any

import pytest
import torch
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.cost_aggregator import attend_in_rectangles, window_sizes
from physseg.train.model.segmenter import Segmenter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CLASSES, IMAGES = 5, 2


class Recorder(TorchDispatchMode):
    """Operators that ran, and the 4-D tensors that each was given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func.name(), [x for x in args if isinstance(x, Tensor) and x.ndim == 4]))
        return func(*args, **(kwargs or {}))

    def counted(self) -> Counter[str]:
        return Counter(name.removeprefix("aten::") for name, _ in self.calls)


@pytest.mark.parametrize(("shift", "sizes"), [(0, 1), (6, 4)], ids=["windows", "shifted windows"])
def test_rectangles_of_one_size_are_attended_in_one_call(shift: int, sizes: int) -> None:
    cuts = window_sizes(24, 12, shift)
    projected = torch.randn(2, 24, 24, 3, 2, 4, requires_grad=True)
    with Recorder() as recorder:
        attend_in_rectangles(projected, cuts, cuts).sum().backward()
    attention = {name: number for name, number in recorder.counted().items() if "dot_product" in name}
    assert list(attention.values()) == [sizes, sizes]  # forward and backward


@pytest.fixture(scope="module")
def step() -> Recorder:
    torch.manual_seed(0)
    model = Segmenter(SegmenterConfig(clip="tiny", structures=("canny", "sift"), alignment=True)).train()
    side, texts = model.arch.image_px, torch.randn(CLASSES, 1, model.arch.embed_dim)
    with Recorder() as recorder:
        output = model(torch.rand(IMAGES, 3, side, side), texts)
        assert output.structure_logits is not None
        weights = torch.rand_like(output.logits), torch.rand_like(output.structure_logits)
        ((output.logits * weights[0]).sum() + (output.structure_logits * weights[1]).sum()).backward()
    return recorder


@pytest.mark.parametrize("name", ["convolution", "native_group_norm", "avg_pool2d", "upsample_bilinear2d"])
def test_maps_are_channels_last(step: Recorder, name: str) -> None:
    """cuDNN's and oneDNN's fastest layout, in which tokens lie anyway: nothing is laid out anew on the way."""
    forward = [given[0] for called, given in step.calls if called.removeprefix("aten::") == name]
    assert forward and all(maps.stride(1) == 1 for maps in forward if maps.shape[1] not in (1, 3))  # cosines, pictures
    backward = [given for called, given in step.calls if called.removeprefix("aten::") == f"{name}_backward"]
    of_classes = [maps for given in backward for maps in given if len(maps) == IMAGES * CLASSES and maps.shape[1] > 1]
    assert of_classes and all(maps.stride(1) == 1 for maps in of_classes)


def test_maps_of_all_classes_are_not_copied_into_another_layout(step: Recorder) -> None:
    """But for the embedded cosines: oneDNN's kernel for one channel that leaves them as tokens rounds otherwise."""
    copied = [given[0] for name, given in step.calls if name == "aten::clone" and given]
    of_classes = [tuple(maps.shape) for maps in copied if len(maps) == IMAGES * CLASSES and maps.shape[1] > 1]
    assert of_classes == [(IMAGES * CLASSES, 24, 24, 32)]
