"""What the parts work on: generated pictures, their stores, and the configurations that are measured."""

import gc
from dataclasses import replace
from pathlib import Path

import torch
import typer
from data import open_samples
from physseg.cli import app
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run.run import preprocess
from physseg.pipeline.store.frame import Frame
from physseg.train import config as train_config
from physseg.train.config import TrainConfig, load_config
from physseg.train.demo.scenes import SceneFolders, write_scenes
from physseg.train.model.device import Precision

from gpu.parts import Kit

DEMO = Path(train_config.__file__).parent / "demo" / "demo.toml"
CONFIGURATIONS = {"B/16": "vit-b-16", "L/14": "vit-l-14", "demo": str(DEMO)}


def pictures_store(kit: Kit) -> Path:
    """A store of pictures that cost what photographs cost, with COCO-Stuff's 171 classes, on frames of 384 px."""
    path = kit.folder / "pictures.zarr"
    if not path.exists():
        manifest = open_samples(None, 16, kit.folder / "pictures").manifest
        preprocess(manifest, path, structures=["canny"], scheduler="sync", progress=False)
    return path


def scenes(kit: Kit) -> SceneFolders:
    """The demo's scenes, fewer than it has."""
    folders = SceneFolders(root=kit.folder / "scenes")
    if not folders.root.exists():
        write_scenes(folders.root, num_train=64 if kit.on_gpu else 12, num_val=8 if kit.on_gpu else 2)
    return folders


def scenes_manifest(kit: Kit, split: str) -> Path:
    """Their table of samples."""
    path, folders = kit.folder / f"{split}.parquet", scenes(kit)
    if not path.exists():
        words = ["manifest", "folder", "--images", folders.images(split), "--labels", folders.labels(split)]
        words += ["--classes-file", folders.classes(split), "--split", split, "--name", "scenes", "--out", path]
        typer.main.get_command(app).main([str(word) for word in words], standalone_mode=False)
    return path


def scenes_store(kit: Kit, short_edge: int) -> Path:
    """Their store, with the structures of the demo."""
    path, frame = kit.folder / f"scenes{short_edge}.zarr", Frame(short_edge=short_edge)
    if not path.exists():
        structures = ["canny", "mask_edges", "sift"]
        manifest = Manifest.read(scenes_manifest(kit, "train"))
        preprocess(manifest, path, structures=structures, frame=frame, scheduler="sync", progress=False)
    return path


def configuration(
    kit: Kit, clip: str, store: Path, *, precision: Precision = "tf32", losses: bool = True, **changes: object
) -> TrainConfig:
    """The recipe of a backbone, or the demo's, with random weights on this store."""
    weight = 1.0 if losses else 0.0
    said = [f"data.store={store}", f"losses.lambda_p={weight}", f"losses.lambda_sac={weight}"]
    config = load_config(CONFIGURATIONS[clip], [*said, f"device={kit.device}", f"precision={precision}"])
    return replace(config, clip_weights=None, **changes)  # type: ignore[arg-type]


def finish(device: str) -> None:
    """Wait until the device has nothing left to do."""
    if device != "cpu":
        torch.cuda.synchronize()


def let_go(device: str) -> None:
    """Give back what PyTorch keeps of the memory of models that are gone."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def hardware(device: str) -> str:
    """The device in words."""
    if device == "cpu":
        return f"{torch.get_num_threads()} CPU threads, PyTorch {torch.__version__}"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{torch.cuda.get_device_name()} ({memory:.0f} GiB), PyTorch {torch.__version__}"
