"""The process of one part: `python -m gpu.part MODULE ...`, which the runner starts."""

import argparse
import importlib
import os
from pathlib import Path

from gpu.parts import Kit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("--device", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    values = vars(parser.parse_args())
    module = importlib.import_module(f"gpu.{values.pop('module')}")
    os.environ.setdefault("PHYSSEG_CACHE", str(values["folder"] / "cache"))
    kit = Kit(**values)
    for section in module.measure(kit):
        kit.write(section)


if __name__ == "__main__":
    main()
