"""SuperPoint on a GPU: all of it but CUDA, with the CPU in the GPU's place.

What is tested on CUDA itself is at the end, and skipped where there is none.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run import run
from physseg.pipeline.run.errors import ShardFailedError
from physseg.pipeline.run.executors.local import LocalExecutor
from physseg.pipeline.run.executors.sync import SyncExecutor
from physseg.pipeline.run.executors.worker import dask_setup
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.layout import open_schema
from physseg.pipeline.store.reader import StoreReader
from physseg.structure_extractors.errors import DeviceError
from physseg.structure_extractors.superpoint import inference
from physseg.structure_extractors.superpoint.extractor import SHIPPED_WEIGHTS, SuperPoint
from physseg.structure_extractors.superpoint.inference import (
    WORKER_NUMBER,
    gpu_of_this_process,
    infer,
    load,
    same_sums_every_time,
)
from physseg.structure_extractors.superpoint.weights import Detector

pytestmark = pytest.mark.cluster
HAS_CUDA = torch.cuda.is_available()
without_cuda = pytest.mark.skipif(HAS_CUDA, reason="there is a GPU")
FRAME = Frame(short_edge=32, max_long_edge=64, canvas=64)
SHA256 = hashlib.sha256(SHIPPED_WEIGHTS.read_bytes()).hexdigest()
LABELS = np.zeros((1, 1), np.uint8)


def detector(device: str, precision: str = "float32") -> Detector:
    return load(str(SHIPPED_WEIGHTS), precision=precision, device=device, sha256=SHA256)


def picture(seed: int, height: int = 41, width: int = 52) -> np.ndarray:
    """Grey squares, whose corners are keypoints."""
    squares = np.random.default_rng(seed).integers(0, 256, (-(-height // 13), -(-width // 13)), np.uint8)
    return squares.repeat(13, axis=0).repeat(13, axis=1)[:height, :width]


def image(seed: int, height: int = 41, width: int = 52) -> np.ndarray:
    return picture(seed, height, width)[:, :, None].repeat(3, axis=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- runs -----------------------------------------------------------------------------------------------------------

SETTINGS = {"superpoint": {"device": "cuda"}}
Make = Callable[..., Manifest]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "gpus", lambda: ("cuda:0", "cuda:1", "cuda:2"))
    monkeypatch.setenv(WORKER_NUMBER, "0")
    taken = []
    for number in range(5):
        dask_setup(SimpleNamespace(name=number))
        taken.append(gpu_of_this_process())
    assert taken == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    monkeypatch.delenv(WORKER_NUMBER)
    assert gpu_of_this_process() == f"cuda:{os.getpid() % 3}"


def test_a_local_worker_knows_its_number() -> None:
    with LocalExecutor(workers=2).connected() as client:
        assert sorted(client.run(os.getenv, WORKER_NUMBER).values()) == ["0", "1"]
    assert WORKER_NUMBER not in os.environ


def test_the_device_changes_the_identity_and_nothing_else(
    make_manifest: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU in the GPU's place: arrays are those of the CPU."""
    monkeypatch.setattr(inference, "gpus", lambda: ("cpu", "cpu"))
    assert computes_on_gpu(SuperPoint(device="cuda")) and not computes_on_gpu(SuperPoint())
    trees = []
    for device in ("cuda", "cpu"):
        store = tmp_path / f"{device}.zarr"
        settings = {"superpoint": {"device": device}}
        job = run.prepare(make_manifest(3), store, structures=["superpoint"], settings=settings, frame=FRAME)
        assert run.execute(job, SyncExecutor(), progress=False).samples_computed == 3
        trees.append({name: data for name, data in tree(store).items() if "/c/" in name})
    assert trees[0] == trees[1]
    assert open_schema(tmp_path / "cuda.zarr").layers["superpoint"]["device"] == "cuda"


def computes_on_gpu(extractor: SuperPoint) -> bool:
    """Whether the extractor asks for the GPU of its process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "gpus", lambda: ())
        try:
            extractor(image(0), LABELS, ignore_index=255)
        except DeviceError:
            return True
    return False


# --- machines without a GPU -----------------------------------------------------------------------------------------


@without_cuda
def test_a_run_that_needs_a_gpu_is_refused_where_there_is_none(make_manifest: Make, tmp_path: Path) -> None:
    manifest, store = make_manifest(2), tmp_path / "s.zarr"

    def prepare(**options: object) -> run.Job:
        return run.prepare(manifest, store, structures=["superpoint"], frame=FRAME, **options)  # type: ignore[arg-type]

    with pytest.raises(
        DeviceError, match=r"superpoint\.device: the layer superpoint is to be computed on a GPU"
    ) as error:
        prepare(settings=SETTINGS)
    assert error.value.hint and "--set superpoint.device=cpu" in error.value.hint
    assert not store.exists()
    job = prepare(settings=SETTINGS, elsewhere=True)  # from the login node of a cluster
    with pytest.raises(ShardFailedError, match=r"PyTorch finds none here") as failed:
        run.execute(job, SyncExecutor(), progress=False)
    assert failed.value.hint == error.value.hint
    with pytest.raises(DeviceError, match="superpoint is to be computed on a GPU"):
        prepare()  # as the store has it
    cpu = prepare(settings={"superpoint": {"device": "cpu"}})
    assert run.execute(cpu, SyncExecutor(), progress=False).samples_computed == 2
    assert "device" not in open_schema(store).layers["superpoint"]


@without_cuda
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--structures", "superpoint", "--device", "cuda"), "hint: run this where a GPU is, or compute the layer on"),
        (("--structures", "canny", "--device", "cuda"), "settings for 'superpoint', which is not among the structures"),
        (("--structures", "superpoint", "--device", "tpu"), "superpoint.device: expected 'cpu' or 'cuda', got 'tpu'"),
    ],
)
def test_the_command_says_so_too(
    make_manifest: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    from physseg.cli import main

    make_manifest(2).write(tmp_path / "m.parquet")
    store = tmp_path / "s.zarr"
    monkeypatch.setattr(sys, "argv", ["physseg", "preprocess", str(tmp_path / "m.parquet"), str(store), *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert message in capsys.readouterr().err
    assert not store.exists()


def test_stores_from_cpus_keep_their_identity() -> None:
    """As it was before there was a choice."""
    assert SuperPoint().identity() == {
        "extractor": "superpoint",
        "revision": 2,
        "threshold": SuperPoint().identity()["threshold"],
        "nms_radius": 4,
        "border": 4,
        "max_keypoints": None,
        "adaptation": 0,
        "dense": False,
        "precision": "float32",
        "weights_sha256": SHA256,
    }
    assert SuperPoint(device="cuda").identity() == {**SuperPoint().identity(), "device": "cuda"}


def test_the_settings_of_pytorch_are_put_back() -> None:
    """Also where somebody used its newer names, which its older ones cannot be read after."""
    backends = torch.backends

    def settings() -> tuple[object, ...]:
        cudnn = backends.cudnn
        precisions = cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]
        return (*precisions, cudnn.deterministic, cudnn.benchmark)

    before = settings()
    try:
        backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
        backends.cudnn.benchmark = True
        theirs = settings()
        with pytest.raises(ZeroDivisionError), same_sums_every_time():
            assert settings() == ("ieee", "ieee", True, False)
            raise ZeroDivisionError
        assert settings() == theirs
    finally:
        backends.cudnn.conv.fp32_precision, backends.cudnn.benchmark = before[0], before[3]  # type: ignore[attr-defined]


# --- CUDA -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")
class TestCuda:
    """Frames as large as those of a data set, for a GPU chooses its algorithms by size."""

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    @pytest.mark.parametrize("adaptation", [0, 16])
    def test_equal_pictures_get_equal_bytes(self, adaptation: int, precision: str) -> None:
        """Between runs, in another order, and from every GPU."""
        pictures = [picture(0, 384, 512), picture(1, 384, 576), picture(2, 41, 52)]

        def answers(gpu: str, pictures: list[np.ndarray]) -> list[np.ndarray]:
            return [infer(detector(gpu, precision).network, grey, adaptation) for grey in pictures]

        first = answers("cuda:0", pictures)
        again = answers("cuda:0", pictures[::-1])[::-1]
        everywhere = [answers(gpu, pictures) for gpu in inference.gpus()]
        for each in (again, *everywhere):
            for got, expected in zip(each, first, strict=True):
                np.testing.assert_array_equal(got, expected)

    @pytest.mark.parametrize("adaptation", [0, 16])
    def test_float32_agrees_with_the_cpu(self, adaptation: int) -> None:
        """Sums in another order move a probability by some 1e-6; TF32, with its 10 bits, would by some 1e-3."""
        for grey in (picture(0, 384, 512), picture(1, 41, 52)):
            gpu, cpu = (infer(detector(device).network, grey, adaptation) for device in ("cuda:0", "cpu"))
            np.testing.assert_allclose(gpu, cpu, atol=1e-4, rtol=0)

    def test_bfloat16_is_near(self) -> None:
        gpu, cpu = (
            infer(detector(device, precision).network, picture(0, 384, 512))
            for device, precision in (("cuda:0", "bfloat16"), ("cpu", "float32"))
        )
        assert 0 < np.abs(gpu - cpu).max() < 0.1
        assert np.abs(gpu - cpu).mean() < 2e-3

    def test_keypoints_are_nearly_all_the_same(self) -> None:
        photo = image(0, 384, 512)
        gpu, cpu = (
            SuperPoint(device=device)(photo, LABELS, ignore_index=255)["superpoint"] for device in ("cuda", "cpu")
        )
        assert np.count_nonzero(cpu) > 50
        assert np.mean((gpu > 0) != (cpu > 0)) < 0.02 * np.mean(cpu > 0)

    def test_a_run_on_local_workers_is_that_of_one_process(self, make_manifest: Make, tmp_path: Path) -> None:
        manifest = make_manifest(70)
        trees = []
        for scheduler in ("local", "sync"):
            store = tmp_path / f"{scheduler}.zarr"
            run.preprocess(
                manifest,
                store,
                scheduler=scheduler,
                structures=["superpoint"],
                settings=SETTINGS,
                frame=FRAME,
                progress=False,
            )
            trees.append(tree(store))
        assert trees[0] == trees[1]

    def test_the_command_computes_the_cpus_keypoints(self, make_manifest: Make, tmp_path: Path) -> None:
        from physseg.cli import app
        from typer.testing import CliRunner

        make_manifest(3, sizes=((384, 512),)).write(tmp_path / "m.parquet")
        found = {}
        for device in ("cuda", "cpu"):
            store = tmp_path / f"{device}.zarr"
            words = ["preprocess", tmp_path / "m.parquet", store, "--structures", "superpoint", "--workers", "1"]
            words += ["--device", "cuda"] if device == "cuda" else []
            done = CliRunner().invoke(app, [str(word) for word in words])
            assert done.exit_code == 0, done.output
            reader = StoreReader(store, ("superpoint",))
            found[device] = np.stack([dict(reader.planes(index))["superpoint"] for index in range(3)])
        assert np.count_nonzero(found["cpu"]) > 50
        assert np.mean((found["cuda"] > 0) != (found["cpu"] > 0)) < 0.02 * np.mean(found["cpu"] > 0)
