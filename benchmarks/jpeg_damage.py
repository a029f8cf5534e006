"""How much damage to JPEGs is noticed, by Pillow's load() and by the check of `physseg manifest`, and what that costs.

python benchmarks/jpeg_damage.py FOLDER
"""

import argparse
import io
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from physseg.manifests.errors import DecodeError
from physseg.manifests.photographs import check_image
from PIL import Image

from common import report

PAGE = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder of whole JPEGs of at least 12 KB, searched to any depth.")
    files = [path.read_bytes() for path in sorted(parser.parse_args().folder.rglob("*.jpg"))]
    files = [data for data in files if len(data) >= 3 * PAGE]
    counts: dict[str, Counter[str]] = {}
    seconds: dict[str, list[float]] = {"Pillow's load()": [], "physseg": []}
    for number, data in enumerate(files):
        for kind, damaged in damages(data, files[number - 1], random.Random(number)):
            count = counts.setdefault(kind, Counter())
            count["files"] += 1
            for name, accepts in (("Pillow's load()", pillow_accepts), ("physseg", physseg_accepts)):
                start = time.perf_counter()
                count[name] += not accepts(damaged)
                if kind == "none":
                    seconds[name].append(time.perf_counter() - start)
    rows = [{"damage": kind} | {key: count[key] for key in ("files", *seconds)} for kind, count in counts.items()]
    cost = {name: f"{1e3 * np.median(values):.2f} ms" for name, values in seconds.items()}
    megapixels = np.median([np.prod(Image.open(io.BytesIO(data)).size) for data in files]) / 1e6
    report("Damaged JPEGs noticed", rows, median_megapixels=f"{megapixels:.3g}", **cost)


def damages(data: bytes, other: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Kinds of damage, each once; pages lie where a file system would have them, the first one aside."""
    start, middle = PAGE * rng.randrange(1, len(data) // PAGE), len(data) // 2
    there = min(start, PAGE * (len(other) // PAGE - 1))
    yield "none", data
    yield "one 4-KiB page zeroed", data[:start] + bytes(PAGE) + data[start + PAGE :]
    yield "one page missing", data[:start] + data[start + PAGE :]
    yield "one page of another file", data[:start] + other[there : there + PAGE] + data[start + PAGE :]
    yield "LF to CRLF", data.replace(b"\n", b"\r\n")
    yield "cut at half, end marker added", data[:middle] + b"\xff\xd9"
    yield "second half zeros", data[:middle] + bytes(len(data) - middle)
    yield "cut at half", data[:middle]


def pillow_accepts(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data)).load()
    except (OSError, SyntaxError):
        return False
    return True


def physseg_accepts(data: bytes) -> bool:
    try:
        check_image(data)
    except DecodeError:
        return False
    return True


if __name__ == "__main__":
    main()
