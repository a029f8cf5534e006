"""Reading one cached sample, and what it takes on disk.

    python benchmarks/read.py [--manifest M.parquet] [--samples 192] [--out FILE.json]

Labels, four structures and the patch counts of one sample at a time, in random order, on one thread, page cache warm:
by our reader, by the bare zstd decode of the same bytes, and against decoding the sample's JPEG or computing the arrays
anew. All take turns.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import zstandard
from data import ARRAYS, open_samples, write_store
from physseg.manifests.manifest import Manifest
from physseg.pipeline.store.reader import StoreReader
from physseg.pipeline.store.shard_codec import decode_index, index_size

from common import Goal, Section, Timing, machine, time_calls

COCO_IMAGES = 118_287


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--samples", type=int, default=192)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = open_samples(args.manifest, args.samples, Path(folder))
        store = write_store(samples.manifest, Path(folder) / "store.zarr")
        section = measure(store, samples.manifest, samples.description)
    print(section.markdown())
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "tables": section.tables}, indent=2, default=str) + "\n")


def measure(store: Path, manifest: Manifest, description: str, repeats: int = 9) -> Section:
    """Milliseconds a sample, and bytes a sample by array."""
    cv2.setNumThreads(1)
    order = np.random.default_rng(0).permutation(len(manifest)).tolist()
    timings = {
        name: _per_sample(timing, len(order))
        for name, timing in time_calls(_contestants(store, manifest, order), repeats=repeats, warmup=1).items()
    }
    sizes = _bytes_per_sample(store, len(manifest))
    total = sum(sizes.values())
    ours, bare, jpeg = (timings[name][0] for name in ("our reader", "bare zstd decode of the same bytes", "its JPEG"))
    return Section(
        title="Reading one sample",
        text=f"{description}; {', '.join(ARRAYS)}; one thread, random order, page cache warm; median and the middle "
        f"80 % of {repeats} passes in turns. The SuperPoint maps come from random weights.",
        tables=[
            [
                {"what": name, "ms a sample": f"{median:.3f} ({low:.3f}-{high:.3f})"}
                for name, (median, low, high) in timings.items()
            ],
            [{"array": name, "bytes a sample": round(size)} for name, size in sizes.items()],
        ],
        goals=[
            Goal(text="at most 1.3 x the bare decode", measured=f"{ours / bare:.2f} x", met=ours <= 1.3 * bare),
            Goal(text="under half of the JPEG's decode", measured=f"{ours / jpeg:.2f} x", met=ours < 0.5 * jpeg),
            Goal(
                text="at most 75 KB an image and 9 GB for COCO's 118,287",
                measured=f"{total / 1e3:.1f} KB, {total * COCO_IMAGES / 1e9:.1f} GB",
                met=total <= 75e3 and total * COCO_IMAGES <= 9e9,
            ),
        ],
    )


def _contestants(store: Path, manifest: Manifest, order: list[int]) -> dict[str, Callable[[], object]]:
    """Each call goes through all samples."""
    reader = StoreReader(store, ARRAYS)
    payloads = [[_chunk(reader, name, index) for name in ARRAYS] for index in order]
    decoder = zstandard.ZstdDecompressor()
    encoded = [(Path(manifest.root) / manifest.samples[index].image_path).read_bytes() for index in order]
    pictures = [np.frombuffer(data, np.uint8) for data in encoded]
    return {
        "our reader": lambda: [reader.read(index) for index in order],
        "bare zstd decode of the same bytes": lambda: [[decoder.decompress(c) for c in chunks] for chunks in payloads],
        "its JPEG": lambda: [cv2.imdecode(picture, cv2.IMREAD_COLOR) for picture in pictures],
    }


def _chunk(reader: StoreReader, name: str, index: int) -> bytes:
    """The zstd frame of one array of one sample, without its checksum."""
    shard, row = divmod(index, reader.schema.samples_per_shard)
    data = reader.store.get(reader.schema.shard_file(reader.schema.spec(name), shard))
    tail = index_size(reader.schema.samples_per_shard)
    offset, length = decode_index(data[-tail:], reader.schema.samples_per_shard, len(data), name)[row]
    return data[int(offset) : int(offset) + int(length) - 4]


def _per_sample(timing: Timing, count: int) -> tuple[float, float, float]:
    return tuple(1e3 * seconds / count for seconds in (timing.median_s, timing.p10_s, timing.p90_s))  # type: ignore[return-value]


def _bytes_per_sample(store: Path, count: int) -> dict[str, float]:
    """Files of each array, metadata and provenance included in their folders' shares."""
    sizes: dict[str, float] = {}
    for folder, _, files in os.walk(store):
        top = Path(folder).relative_to(store).parts[:1]
        size = sum((Path(folder) / file).stat().st_size for file in files)
        sizes[top[0] if top else "zarr.json"] = sizes.get(top[0] if top else "zarr.json", 0) + size / count
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    main()
