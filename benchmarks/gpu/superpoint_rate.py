"""SuperPoint as `preprocess --device cuda` calls it: one picture after the other, post-processing included."""

from collections.abc import Callable, Iterator

import numpy as np
from physseg.structure_extractors.superpoint.extractor import SuperPoint
from superpoint import LABELS, SIZE

from common import Section, time_call
from gpu.material import hardware
from gpu.parts import Kit


def measure(kit: Kit) -> Iterator[Section]:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    rows: list[dict[str, object]] = []
    for adaptation in (0, 16):
        for precision in ("float32", "bfloat16") if kit.on_gpu else ("float32",):
            extractor = SuperPoint(device=kit.device, precision=precision, adaptation=adaptation)  # type: ignore[arg-type]

            def call(extractor: Callable[..., object] = extractor) -> object:
                return extractor(image, LABELS, ignore_index=255)

            timing = time_call(
                call, repeats=(20, 6)[adaptation > 0] if kit.on_gpu else 1, warmup=2 if kit.on_gpu else 1
            )
            rows.append(
                {
                    "adaptation": adaptation,
                    "precision": precision,
                    "time": str(timing),
                    "images/s": f"{1 / timing.median_s:.3g}",
                }
            )
            yield Section(
                title="SuperPoint",
                text=f"{SIZE[1]}x{SIZE[0]} px, the package's own weights, one process on {hardware(kit.device)}: "
                "network, suppression and coding of one picture at a time; median (10th-90th percentile). Several "
                "workers share a GPU.",
                tables=[rows],
            )
