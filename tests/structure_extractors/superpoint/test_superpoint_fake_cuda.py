"""SuperPoint as `preprocess --structures superpoint --set superpoint.device=cuda` runs it, on fake tensors of a GPU."""

import numpy as np
import pytest
import torch
from physseg.structure_extractors.superpoint import inference
from physseg.structure_extractors.superpoint.extractor import SHIPPED_WEIGHTS, SuperPoint

from ...fake_device import fake_device


@pytest.mark.parametrize("adaptation", [0, 16])
def test_a_picture_on_cuda(adaptation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = inference.read_detector(SHIPPED_WEIGHTS)
    network = detector.network
    monkeypatch.setattr(inference, "gpus", lambda: ("cuda:0",))
    monkeypatch.setattr(SuperPoint, "_detector", lambda extractor, device: detector)
    extractor = SuperPoint(device="cuda", adaptation=adaptation)
    image, labels = np.zeros((60, 90, 3), np.uint8), np.zeros((60, 90), np.uint8)
    with fake_device("cuda") as device:
        device.put(network)
        arrays = extractor(image, labels, ignore_index=255)
        assert arrays["superpoint"].shape == (60, 90)
        assert len(device.waits) == 1 and "superpoint/inference.py" in device.waits[0], device.waits  # for its result
        network.head.conv.bias = torch.nn.Parameter(torch.zeros(network.head.conv.bias.shape))
        with pytest.raises(RuntimeError, match="on the same device"):
            extractor(image, labels, ignore_index=255)
