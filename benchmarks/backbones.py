"""One training step on each backbone, beside ViT-B-16's: seconds, memory, FLOP, and what the loss does.

    python benchmarks/backbones.py [--manifest M.parquet] [--rounds 3]

Each base size takes real steps on one image, in a process of its own. Beside it stands what `--dry-run` says of a step
on 171 classes with `recompute`, and of the large sizes nothing else.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data import Samples, open_samples, write_samples, write_store
from physseg.train.planning.estimate import rehearse
from train_plan import run_alone
from train_step import Case, configuration

from common import Section, machine, spread

BASE = ("ViT-B-16", "EVA02-B-16", "PE-Core-B-16", "convnext_base_w_320")
LARGE = ("ViT-L-14-336", "EVA02-L-14-336", "PE-Core-L-14-336", "convnext_large_d_320")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, help="Your own data; default: generated pictures.")
    parser.add_argument("--rounds", type=int, default=3, help="Steps that count; two before them do not.")
    parser.add_argument("--measured", nargs="*", default=BASE)
    parser.add_argument("--planned", nargs="*", default=LARGE)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        samples = open_samples(args.manifest, 12, Path(name))
        store = write_store(samples.manifest, Path(name) / "store.zarr")
        print(f"{machine()}\n\n{measure(samples, store, args.rounds, args.measured, args.planned).markdown()}")


def measure(samples: Samples, store: Path, rounds: int, base: Sequence[str], large: Sequence[str]) -> Section:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        many = write_store(write_samples(Path(folder), 2), Path(folder) / "many.zarr")
        for clip in (*base, *large):
            case = Case(device="cpu", batch=1, precision="fp32", clip=clip)
            config = configuration(replace(case, recompute=True), many, losses=True)
            plan, row = rehearse(config, 1).step(), dict.fromkeys(("s a step", "TFLOP", "GB", "loss"), "")
            if clip in base:
                one = run_alone(case, store, rounds, threads=1)
                row = {
                    "s a step": spread(one["seconds"]),
                    "TFLOP": f"{one['flop'] / 1e12:.3g}",
                    "GB": f"{(one['bytes'] + one['kept_bytes']) / 1e9:.3g}",
                    "loss": " ".join(f"{loss:.3f}" for loss in one["losses"]),
                }
            flop = (plan.work["product"] + plan.work["convolution"]) / 1e12
            planned = {"planned TFLOP": f"{flop:.3g}", "planned GB": f"{plan.peak_bytes / 1e9:.3g}"}
            rows.append({"backbone": clip, "input": f"{config.model.arch.image_px} px"} | row | planned)
            print(rows[-1], file=sys.stderr, flush=True)
    text = (
        f"{samples.description}, {len(samples.manifest.vocabulary.classes)} classes; batch 1, float32, both losses, "
        f"random weights. CPU seconds on one thread, and losses, of {rounds} steps after two, all on one image. GB at "
        "the peak, weights and optimizer included. Planned: 171 classes, `recompute`."
    )
    return Section(title="Backbones", text=text, tables=[rows])


if __name__ == "__main__":
    main()
