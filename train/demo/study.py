"""What the study trains and tests on: the regime's scenes, their manifests and store, the baseline's configuration.

`physseg analyse ablation study` trains the rows (train/analysis/study.toml); docs/study.md has the set-up.
"""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ...common.atomic import atomic_write
from .chain import Chain, DemoError
from .regime import TEST_SPLITS, write_regime
from .scenes import SceneFolders

STRUCTURES = "canny,mask_edges,sift,superpoint,semantic_edges"


def write_study(out: Path, *, say: Callable[[str], None]) -> None:
    """Write all of it into the folder `out`, and say the command that trains; what is there already is kept.

    Raises DemoError where a command fails, and before anything is written where `out` has another configuration.
    """
    config, ours = out / "config.toml", Path(__file__).with_name("study.toml").read_bytes()
    if config.exists() and config.read_bytes() != ours:
        raise DemoError.mismatch(config, "nothing, or the study's own", "another file", "choose another --out")
    atomic_write(config, ours)
    chain, scenes = Chain(out=out, say=say), SceneFolders(root=out / "scenes")
    chain.generate(f"write the study's scenes to {scenes.root}", partial(write_regime, scenes.root))
    for split in ("train", *TEST_SPLITS):
        chain.manifest(scenes, split)
    options = ("--short-edge", "192", "--structures", STRUCTURES)
    chain.command("preprocess", "preprocess", out / "train.parquet", out / "train.zarr", *options)
    tests = [str(out / f"{split}.parquet") for split in TEST_SPLITS]
    words = ["physseg", "analyse", "ablation", "study", str(config), "--out", str(out / "runs"), *tests]
    say(f"\nnext: {shlex.join([*words, '--seeds', '0,1,2,3,4', '--jobs', '2', '--no-windows'])}")
