"""The trainer is lean: a training step loads nothing of what computes a store."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PROGRAM = """
import sys
from physseg.train.config import load_config
from physseg.train.loop.loop import train

assert train(load_config(sys.argv[1]), progress=False).step == 1
print(*sorted(sys.modules))
"""


def test_a_training_step_loads_neither_dask_nor_the_pipeline(write_config: Callable[..., Path]) -> None:
    command = [sys.executable, "-c", PROGRAM, str(write_config(steps=1))]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "physseg.pipeline.store.reader" in loaded
    assert not {"dask", "distributed", "tornado", "jinja2"} & set(loaded)
    assert not [name for name in loaded if name.startswith(("physseg.pipeline.run", "physseg.pipeline.cost"))]
