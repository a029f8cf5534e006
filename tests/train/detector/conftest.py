"""A training of a detector that takes next to no time."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from physseg.train.detector.loop import train
from physseg.train.detector.pictures.sources import Shapes
from physseg.train.detector.settings import TrainSettings


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> TrainSettings:
    widths = (4, 4, 4, 4, 8, 8, 8, 8)
    return TrainSettings(steps=6, batch_size=4, size=(32, 40), widths=widths, head_width=8, precision="float32")


@pytest.fixture
def tiny_weights(tmp_path: Path, tiny: TrainSettings) -> Path:
    return train(Shapes(), tiny, tmp_path / "tiny", stop_at=1)
