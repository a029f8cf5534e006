"""A store and a model small enough that a training step takes milliseconds."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from physseg.common.settings import build
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run.run import preprocess
from physseg.pipeline.store.frame import Frame
from physseg.train.config import TrainConfig
from physseg.train.model.backbones.clip import ClipArchitecture

TINIER = ClipArchitecture(
    embed_dim=16,
    image_px=96,
    patch_px=16,
    position_grid=6,
    vision_width=32,
    vision_layers=4,
    vision_heads=2,
    text_width=16,
    text_layers=1,
    text_heads=1,
    guidance_blocks=(0, 2),
    quick_gelu=False,
)
"""For crops of 96 px: 6x6 patches, logits of 24x24."""

MODEL = {
    "clip": "tinier",
    "architecture": asdict(TINIER),
    "finetune": "all",
    "structures": ["canny", "sift"],
    "window": 6,
    "num_layers": 1,
    "pad_len": 8,
    "hidden_dim": 16,
    "guidance_dim": 16,
    "decoder_dims": [16, 16],
    "decoder_guidance_dims": [16, 16],
    "decoder_guidance_proj_dims": [8, 8],
    "structure_dim": 16,
}


class EchoStructures(torch.nn.Module):
    """Predicts the red and the green of every pixel of a window."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(structures=("canny", "mask_edges"))
        self.sizes: set[tuple[int, ...]] = set()

    def predict_structures(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.add(tuple(images.shape[1:]))
        return images[:, :2] / 255


@pytest.fixture
def train_manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    """Seven images, some larger and some smaller than the crop."""
    return make_manifest(7, sizes=((100, 140), (240, 160), (96, 96), (80, 230)))


@pytest.fixture
def store(train_manifest: Manifest, tmp_path: Path) -> Path:
    """Their store, with Canny edges and SIFT keypoints, on frames of 96 px and up to 192."""
    path = tmp_path / "store.zarr"
    frame = Frame(short_edge=96, max_long_edge=192, canvas=192)
    preprocess(train_manifest, path, structures=["canny", "sift"], frame=frame, scheduler="sync", progress=False)
    return path


@pytest.fixture
def config_values(store: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`config_values(steps=3, data={"flip": 0}, ...)`: settings of the tinier model on the store, as in TOML."""

    def make(**changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "run": str(tmp_path / "run"),
            "data": {"store": str(store), "crop": 96, "num_workers": 0},
            "model": dict(MODEL),
            "steps": 6,
            "batch_size": 3,
            "seed": 5,
            "log_every": 1,
            "checkpoint_every": 100,
            "device": "cpu",
        }
        for key, value in changes.items():
            values[key] = values[key] | value if isinstance(values.get(key), dict) else value
        return values

    return make


@pytest.fixture
def make_config(config_values: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., TrainConfig]:
    """As `config_values`, built."""
    torch.set_num_threads(1)
    return lambda **changes: build(TrainConfig, config_values(**changes), base=tmp_path)


@pytest.fixture
def write_config(config_values: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """As `config_values`, in a TOML file for processes of their own, which do not know the tinier preset."""

    def write(**changes: Any) -> Path:
        values = config_values(**changes)
        path = tmp_path / f"config{len(list(tmp_path.glob('config*.toml')))}.toml"
        path.write_text("\n".join(to_toml(values)) + "\n")
        return path

    return write


@pytest.fixture
def install_losses(install: Callable[..., Path]) -> Callable[..., Path]:
    """`install_losses(source, hard="Hard")` puts the package far-losses 1.5 on the path, with these of its classes."""

    def put(source: str, **classes: str) -> Path:
        entries = "\n".join(f"{name} = far_losses:{cls}" for name, cls in classes.items())
        return install("far-losses", entries, source, "losses")

    return put


def to_toml(values: dict[str, Any], table: str = "") -> list[str]:
    """Numbers, texts and lists look alike in TOML and JSON; None is left out."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict) and value is not None}
    lines = [f"[{table}]"] * bool(table) + [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += to_toml(value, f"{table}.{key}".lstrip("."))
    return lines
