"""What manifests of many rows take: `python benchmarks/rows.py --rows 118287 1000000 10000000`.

Rows are made up and no image is read. The store that is resumed is complete: its files are written here, empty but for
the commit records and status, which are as a run leaves them. Seconds are CPU seconds of a process of its own, without
its imports; bytes are what its resident memory grows by after the imports, at its peak.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from physseg.common.processes import memory_of
from physseg.common.text import format_bytes
from physseg.manifests.manifest import Manifest, Vocabulary
from physseg.manifests.sample_table import SCHEMA, SampleTable
from physseg.pipeline.inspect.summary import summarise
from physseg.pipeline.run.run import execute, prepare
from physseg.pipeline.run.task import _read_manifest
from physseg.pipeline.run.verify import verify
from physseg.pipeline.store.commits import CommitRecord, LayerCommit, commit_path, sha256
from physseg.pipeline.store.layout import create_store, open_schema, settings_digest
from physseg.pipeline.store.reader import StoreReader
from physseg.pipeline.store.schema import STATUS
from physseg.pipeline.store.shard_files import encode_status

CLASSES, MADE_AT_ONCE = 171, 10**6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[118_287])
    parser.add_argument("--folder", type=Path, help="Where to write; about 1.5 KB a row. Default: a temporary folder.")
    parser.add_argument("--kept", action="store_true", help="Keep what is written in the folder, and measure it again.")
    parser.add_argument("--more", action="store_true", help="Also verify, inspect, and open as a trainer does.")
    args = parser.parse_args()
    for rows in args.rows:
        if args.kept:
            measure(rows, args.folder, args.more)
        else:
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                measure(rows, Path(folder), args.more)


def measure(rows: int, folder: Path, more: bool) -> None:
    manifest, store = str(folder / "rows.parquet"), str(folder / "rows.zarr")
    if not Path(manifest).exists():
        shown("write the manifest", rows, write_manifest, rows, manifest)
    print(f"{rows:>10,} rows: manifest of {format_bytes(Path(manifest).stat().st_size)}")
    shown("read the manifest", rows, Manifest.read, manifest)
    shown("plan a new store", rows, plan, manifest, f"{store}.new")
    if not Path(store).exists():
        shown("make the store", rows, complete_store, manifest, store)
    shown("resume the complete store", rows, resume, manifest, store)
    shown("a worker's rows", rows, work, store)
    if more:
        shown("open as a trainer does", rows, read, store)
        shown("inspect", rows, inspect, store)
        shown("verify", rows, check, store)


def shown(what: str, rows: int, function: Callable[..., Any], *arguments: Any) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        cpu, wall, grown = pool.submit(_measured, function, *arguments).result()
    print(f"{rows:>10,} rows: {what:<26} {cpu:7.2f} s CPU, {wall:7.2f} s, {format_bytes(grown)}", flush=True)


def _measured(function: Callable[..., Any], *arguments: Any) -> tuple[float, float, int]:
    before, cpu, wall = memory_of("self").now, time.process_time(), time.perf_counter()
    _ = function(*arguments)
    return time.process_time() - cpu, time.perf_counter() - wall, memory_of("self").peak - before


def made_up(rows: int) -> SampleTable:
    """Rows like COCO's: the same lengths of names, other sizes and hashes."""
    tables = []
    for start in range(0, rows, MADE_AT_ONCE):
        numbers, draw = range(start, min(start + MADE_AT_ONCE, rows)), np.random.default_rng(start)
        names = [f"{number:012d}" for number in numbers]
        hashes = draw.bytes(64 * len(names)).hex()
        columns = {
            "sample_id": names,
            "image_path": [f"images/train2017/{name}.jpg" for name in names],
            "label_path": [f"stuffthingmaps/train2017/{name}.png" for name in names],
            "height": draw.integers(400, 641, len(names)),
            "width": draw.integers(400, 641, len(names)),
            "image_sha256": [hashes[128 * row : 128 * row + 64] for row in range(len(names))],
            "label_sha256": [hashes[128 * row + 64 : 128 * row + 128] for row in range(len(names))],
            "split": ["train"] * len(names),
            "orientation": [1] * len(names),
            "problem": [""] * len(names),
            "note": [""] * len(names),
        }
        tables.append(pa.table({name: pa.array(of, SCHEMA.field(name).type) for name, of in columns.items()}, SCHEMA))
    return SampleTable(pa.concat_tables(tables))


def write_manifest(rows: int, path: str) -> None:
    names = tuple(f"class {number}" for number in range(CLASSES))
    Manifest(
        root="/data/made_up",
        dataset="made up",
        vocabulary=Vocabulary(name="made up", classes=names),
        raw_to_class={number: number for number in range(CLASSES)},
        raw_ignore=(255,),
        samples=made_up(rows),
    ).write(path)


def plan(manifest: str, store: str) -> Any:
    """All but the look whether the images are there, which they are not."""
    from physseg.pipeline.run import prepare as preparing

    preparing._check_data_there = lambda *_: None  # type: ignore[assignment]
    return prepare(Manifest.read(manifest), store)


def resume(manifest: str, store: str) -> None:
    report = execute(prepare(Manifest.read(manifest), store), progress=False)
    assert report.shards_computed == 0 and report.num_samples == len(StoreReader(store, [])), report


def work(store: str) -> None:
    """What a worker reads of a manifest for two shards in the middle."""
    schema = open_schema(store)
    manifest = _read_manifest(store, settings_digest(schema), "/data/made_up")
    for shard in (schema.num_shards // 2, schema.num_shards // 2 + 1):
        manifest.row_digests(*schema.shard_range(shard))


def read(store: str) -> None:
    reader = StoreReader(store, ["canny"])
    assert reader.manifest.samples[len(reader) - 1]


def inspect(store: str) -> None:
    assert summarise(store, measure=0).done == len(StoreReader(store, []))


def check(store: str) -> None:
    assert not verify(store, progress=False).faults


def complete_store(manifest: str, store: str) -> None:
    job = plan(manifest, store)
    create_store(job.store, job.schema, job.manifest)
    halves = np.array_split(np.arange(job.schema.num_shards), 2 if job.schema.num_shards > 1000 else 1)
    processes = [multiprocessing.Process(target=commit, args=(manifest, store, half.tolist())) for half in halves]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def commit(manifest: str, store: str, shards: list[int]) -> None:
    """Files of shards as a run leaves them, but empty, and without waiting for the disk."""
    rows, schema, empty = Manifest.read(manifest), open_schema(store), sha256(b"")
    digests = {layer: schema.layer_digest(layer) for layer in schema.layers}
    for shard in shards:
        files: dict[str, dict[str, str]] = {layer: {} for layer in schema.layers}
        for spec in schema.arrays:
            files[spec.layer][schema.shard_file(spec, shard)] = empty
        record = CommitRecord(
            shard=shard,
            samples=schema.shard_range(shard),
            inputs=rows.row_digests(*schema.shard_range(shard)),
            layers={layer: LayerCommit(settings=digests[layer], files=of) for layer, of in files.items()},
        )
        whole = dict.fromkeys((path for of in files.values() for path in of), b"")
        whole |= {
            schema.shard_file(STATUS, shard): encode_status(record, schema),
            commit_path(shard): record.to_bytes(),
        }
        for path, data in whole.items():
            try:
                file = open(f"{store}/{path}", "xb")  # noqa: PTH123, SIM115 (a million of them)
            except FileNotFoundError:
                Path(f"{store}/{path}").parent.mkdir(parents=True, exist_ok=True)
                file = open(f"{store}/{path}", "xb")  # noqa: PTH123, SIM115
            file.write(data)
            file.close()


if __name__ == "__main__":
    main()
