"""Proves that a refactoring keeps every byte: runs public commands on real photographs and hashes what they leave.

    python tests/same_bytes.py --data DIR --out hashes.json        # on the version before: writes {name: sha256}
    python tests/same_bytes.py --data DIR --compare hashes.json    # on the version after: exit code 1 if one differs

DIR holds the folders coco_stuff, voc and msrc. PYTHONPATH decides which physseg runs. Both runs need one machine, one
environment and one --work, for manifests and run folders hold full paths. A hash is that of a file's bytes, but for
what LEFT_OUT and TIMES name.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

LEFT_OUT = {
    "data/*": "copies of the input",
    "*.zarr*.log.jsonl": "times and process ids, in the order in which shards end",
    "*/tensorboard/*": "times, host and process id; log.jsonl has the same numbers",
}
"""Files that are not hashed, and why."""

TIMES = ("time", "seconds", "speed/images_per_second", "speed/data_wait")
"""Keys of the lines of log.jsonl, of both trainings, that are not hashed."""

TIMED = ("preprocess ", "train ", "superpoint train")
"""Beginnings of commands that print seconds or rates: of these the exit code is hashed, and the output is not."""

CODES = {"manifest_msrc": 3, "msrc": 3, "parts_2": 3, "broken": 1}
"""Exit codes besides 0. The last photograph of msrc is truncated, and before "broken" a byte of a store is changed."""

ABORTED = "terminate called without an active exception"
"""What pyarrow's threads may end a process with, on a busy machine, after its work: such a code is not hashed."""

PHOTOS = "data/voc/JPEGImages/2007_000063.jpg data/coco_stuff/images/000000017914.jpg"
ALL = "--structures canny,mask_edges,sift,superpoint"
MSRC = "--images data/msrc/images --labels data/msrc/labels --classes-file data/classes.txt"
DETECTOR = "--batch-size 4 --precision float32"
FORMS = """--set ema_decay=0.9 --set accumulate=2 --set recompute=true --set precision=bf16 --set steps=2
    --set losses.structure_form=quality --set losses.structure_target=soft --set losses.alignment_form=soft_ce"""

COMMANDS = f"""
manifest_coco: manifest coco-stuff --images data/coco_stuff/images --labels data/coco_stuff/stuffthingmaps
    --out coco.parquet --verbose
manifest_voc: manifest pascal-voc-20 --root data/voc --split train --list data/voc.txt --out voc.parquet --verbose
manifest_msrc: manifest folder {MSRC} --list data/msrc.txt --out msrc.parquet
manifest_few: manifest folder {MSRC} --list data/few.txt --out few.parquet
detector: superpoint train-synthetic detector --steps 4 {DETECTOR}
textures: superpoint textures textures --num-images 3

msrc: preprocess msrc.parquet msrc.zarr {ALL} --short-edge 192 --workers 2
voc_begun: preprocess voc.parquet voc.zarr --structures sift --short-edge 192 --scheduler sync
parts_1: preprocess msrc.parquet parts.zarr --short-edge 96 --part 1/2 --scheduler sync
label: superpoint label textures labels.npz --weights detector/weights.safetensors --adaptation 3 --precision float32

train: train config.toml --out runs/whole
train_begun: train config.toml --out runs/resumed --set data.num_workers=1 --stop-at 10
voc: preprocess voc.parquet voc.zarr {ALL} --set canny.low=50 --scheduler sync
parts_2: preprocess msrc.parquet parts.zarr --short-edge 96 --part 2/2 --scheduler sync
coco: preprocess coco.parquet coco.zarr {ALL} --short-edge 192 --scheduler sync --set superpoint.dense=true
few: preprocess few.parquet few.zarr --structures superpoint --short-edge 96
    --set superpoint.adaptation=16 --scheduler sync

train_resumed: train config.toml --out runs/resumed --set data.num_workers=1
train_forms: train config.toml --out runs/forms --set data.store=voc.zarr {FORMS}
further: superpoint train further textures labels.npz --start detector/weights.safetensors --steps 2 {DETECTOR}
evaluate: evaluate runs/whole voc.parquet few.parquet --num-images 3 --no-windows --all-classes --device cpu
half_1: evaluate runs/whole few.parquet --out halves --no-windows --part 1/2 --device cpu
half_2: evaluate runs/whole few.parquet --out halves --no-windows --part 2/2 --device cpu
predict: predict runs/whole {PHOTOS} --classes "cat, dog, sofa, grass" --out predictions --device cpu
oracle: analyse oracle runs/whole few.parquet --no-windows --num-images 2 --json oracle.json --device cpu
structure: analyse structure runs/whole --store voc.zarr --num-images 2 --checkpoint 10 --json maps.json --device cpu
export: export runs/whole exported
broken: verify parts.zarr
verify_coco: verify coco.zarr
verify_voc: verify voc.zarr
verify_msrc: verify msrc.zarr
inspect_coco: inspect coco.zarr
inspect_voc: inspect voc.zarr --json -
page: inspect voc.zarr --sample 0 --out samples --html page.html

merge: evaluate --merge halves/few-step_00000020.part-1-of-2.json halves/few-step_00000020.part-2-of-2.json
compare: analyse compare runs/whole runs/forms few.parquet --no-windows --num-images 2 --device cpu
mended: verify parts.zarr --repair --scheduler sync
predict_export: predict exported {PHOTOS} --classes-file data/classes.txt --out of_export --no-windows --device cpu
similarity: analyse similarity exported pascal-voc-20 --json similarity.json --csv similarity.csv --device cpu
figures: superpoint evaluate further/weights.safetensors --per-kind 1 --json figures.json
"""
"""Name and arguments of each command. Indented lines go on; commands between two empty lines run two at a time."""

CONFIG = """steps = 20; seed = 7; batch_size = 2; device = "cpu"; log_every = 5; checkpoint_every = 10
data.store = "msrc.zarr"; data.crop = 192; data.num_workers = 0; optim.learning_rate = 1e-3; optim.clip_scale = 1.0
eval.manifest = "few.parquet"; eval.every = 10; eval.max_images = 2
model.clip = "tiny"; model.structures = ["canny", "mask_edges", "sift", "superpoint"]
"""
"""Of the trainings, with both losses; semicolons end lines, too."""


def prepare(work: Path, data: Path) -> None:
    """Empties the folder `work` and puts photographs, lists and the configuration of the trainings there."""
    marker = work / "made_by_same_bytes"
    if work.exists() and not marker.exists():
        raise SystemExit(f"{work}: expected nothing, or a folder that this script made")
    shutil.rmtree(work, ignore_errors=True)
    for name in ("coco_stuff", "voc", "msrc"):
        shutil.copytree(data / name, work / "data" / name)
    (work / "output").mkdir()
    marker.touch()
    msrc = sorted(path.stem for path in (data / "msrc/images").iterdir())[:70]
    shutil.copy(data / f"msrc/labels/{msrc[0]}.png", work / "data/msrc/labels/z.png")
    photo = (data / f"msrc/images/{msrc[0]}.jpg").read_bytes()
    (work / "data/msrc/images/z.jpg").write_bytes(photo[: len(photo) // 2])
    voc = (data / "voc/ImageSets/Segmentation/train.txt").read_text().split()[:24]
    classes = json.loads((data / "msrc/classes.json").read_text())["classes"]
    for name, lines in {"msrc": [*msrc, "z"], "few": msrc[::24], "voc": voc, "classes": classes}.items():
        (work / f"data/{name}.txt").write_text("\n".join(lines) + "\n")
    (work / "config.toml").write_text(CONFIG.replace("; ", "\n"))


def run_all(work: Path) -> None:
    """Runs COMMANDS in the folder `work`."""
    fixed = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PHYSSEG_CACHE": "cache"}
    paths = [str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = os.environ | fixed | {"PYTHONPATH": os.pathsep.join(paths)}
    where = [sys.executable, "-c", "import physseg; print('physseg of', physseg.__path__[0], flush=True)"]
    subprocess.run(where, cwd=work, env=environment, check=True)
    for commands in COMMANDS.replace("\n    ", " ").strip().split("\n\n"):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(partial(run, work, environment), commands.splitlines()))


def run(work: Path, environment: dict[str, str], command: str) -> None:
    """Runs one command; what it prints and its exit code go to a file."""
    name, _, arguments = command.partition(": ")
    if name == "broken":
        shard = next(path for path in sorted(work.glob("parts.zarr/canny/c/**/*")) if path.is_file())
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    call, started = [sys.executable, "-m", "physseg", *shlex.split(arguments)], time.monotonic()
    ended = subprocess.run(call, cwd=work, env=environment, capture_output=True, text=True, check=False)
    expected, aborted = CODES.get(name, 0), ended.returncode < 0 and ended.stderr.rstrip().endswith(ABORTED)
    if ended.returncode != expected and not aborted:
        raise SystemExit(f"{command}\nended with {ended.returncode}: {ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    output = "" if arguments.startswith(TIMED) else ended.stdout
    (work / f"output/{name}.txt").write_text(f"{output}exit code {expected}\n")
    sys.stdout.write(f"{time.monotonic() - started:6.1f} s  {name}{' (aborted after its work)' * aborted}\n")


def hash_all(work: Path) -> dict[str, str]:
    """Hashes every file below `work` that is not left out; names are relative paths."""
    hashes = {}
    for path in sorted(work.rglob("*")):
        name, content = path.relative_to(work).as_posix(), path.read_bytes() if path.is_file() else None
        if content is None or any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_OUT):
            continue
        if path.name == "log.jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            kept = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
            content = json.dumps(kept).encode()
        hashes[name] = hashlib.sha256(content).hexdigest()
    return hashes


def main() -> None:
    """Reads the options, runs everything, and writes or compares the hashes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of coco_stuff, voc and msrc")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "physseg_same_bytes")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--out", type=Path, help="JSON file to write the hashes to")
    goal.add_argument("--compare", type=Path, help="JSON file of hashes to compare with")
    options = parser.parse_args()
    prepare(options.work, options.data)
    run_all(options.work.resolve())
    hashes = hash_all(options.work)
    if options.out:
        options.out.write_text(json.dumps(hashes, indent=1) + "\n")
        sys.stdout.write(f"{options.out}: {len(hashes)} hashes\n")
        return
    before = json.loads(options.compare.read_text())
    different = sorted(name for name in before.keys() | hashes.keys() if before.get(name) != hashes.get(name))
    for name in different:
        what = "gone" if name not in hashes else "new" if name not in before else "different"
        sys.stdout.write(f"{what}: {name}\n")
    sys.stdout.write(f"{len(before)} hashes, {len(different)} differences\n")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
