"""SuperPoint on a GPU, by processes that serve the workers: all of it but CUDA, with the CPU in the GPU's place.

What is tested on CUDA itself is at the end, and skipped where there is none.
"""

import hashlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run import run
from physseg.pipeline.run.errors import ExecutorError, ShardFailedError
from physseg.pipeline.run.executors import gpu_servers
from physseg.pipeline.run.executors.gpu_servers import need_gpu, serving, serving_on
from physseg.pipeline.store.commits import read_commits
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.layout import open_schema
from physseg.structure_extractors.errors import DeviceError, WeightsError
from physseg.structure_extractors.keypoints import decode_confidence
from physseg.structure_extractors.superpoint import inference as superpoint_inference
from physseg.structure_extractors.superpoint import server as superpoint_server
from physseg.structure_extractors.superpoint.extractor import SHIPPED_WEIGHTS, SuperPoint
from physseg.structure_extractors.superpoint.inference import Network, infer, same_sums_every_time
from physseg.structure_extractors.superpoint.server import VARIABLE, ask

pytestmark = pytest.mark.cluster
HAS_CUDA = torch.cuda.is_available()
without_cuda = pytest.mark.skipif(HAS_CUDA, reason="there is a GPU")
FRAME = Frame(short_edge=32, max_long_edge=64, canvas=64)
SHA256 = hashlib.sha256(SHIPPED_WEIGHTS.read_bytes()).hexdigest()
LABELS = np.zeros((1, 1), np.uint8)


def network(adaptation: int = 0, precision: str = "float32", *, path: Path = SHIPPED_WEIGHTS) -> Network:
    return Network(weights=str(path), sha256=SHA256, precision=precision, adaptation=adaptation)


def picture(seed: int, height: int = 41, width: int = 52) -> np.ndarray:
    """Grey squares, whose corners are keypoints."""
    squares = np.random.default_rng(seed).integers(0, 256, (-(-height // 13), -(-width // 13)), np.uint8)
    return squares.repeat(13, axis=0).repeat(13, axis=1)[:height, :width]


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def image(seed: int, height: int = 41, width: int = 52) -> np.ndarray:
    return picture(seed, height, width)[:, :, None].repeat(3, axis=2)


def spawned() -> list[int]:
    """Processes that this one has started, servers among them."""
    return [child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in servers and workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sockets() -> Iterator[tuple[str, ...]]:
    """Of one server, on the CPU."""
    with serving_on(["cpu"]) as environment:
        yield (environment[VARIABLE],)


@pytest.fixture
def cpu_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two "GPUs" in this process, and none in those that it starts."""
    for module in (superpoint_inference, gpu_servers):
        monkeypatch.setattr(module, "gpus", lambda: ("cpu", "cpu"))


# --- questions and answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("adaptation", [0, 16])
def test_a_server_answers_what_its_device_does_in_process(
    sockets: tuple[str, ...], adaptation: int, precision: str
) -> None:
    asked = network(adaptation, precision)
    for grey in (picture(0), picture(1, 24, 64), picture(2)[::-1, ::2]):
        expected, got = infer(asked, grey, "cpu"), ask(sockets, asked, grey)
        np.testing.assert_array_equal(got.probability, expected.probability)
        assert got.probability.dtype == np.float32 and got.probability.std() > 0
        assert got.threshold == expected.threshold


def test_the_extractor_asks_when_there_are_servers(
    sockets: tuple[str, ...], cpu_as_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking, alone = SuperPoint(device="cuda", dense=True), SuperPoint(dense=True)
    expected = alone(image(0), LABELS, ignore_index=255)
    in_process = asking(image(0), LABELS, ignore_index=255)
    monkeypatch.setattr(superpoint_inference, "gpus", lambda: ())  # from here on only the server has one
    monkeypatch.setenv(VARIABLE, os.pathsep.join(sockets))
    served = asking(image(0), LABELS, ignore_index=255)
    for made in (in_process, served):
        assert made.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(made[name], array)
    assert np.count_nonzero(expected["superpoint"])


def test_processes_ask_at_once_and_each_gets_its_own_answers(sockets: tuple[str, ...]) -> None:
    """They need no PyTorch for it."""
    code = (
        "import sys, hashlib, numpy as np\n"
        "from physseg.structure_extractors.superpoint.inference import Network\n"
        "from physseg.structure_extractors.superpoint.server import ask\n"
        "socket, weights, sha256, first = sys.argv[1:]\n"
        "network = Network(weights=weights, sha256=sha256, precision='float32', adaptation=0)\n"
        "for seed in range(int(first), int(first) + 20):\n"
        "    grey = np.random.default_rng(seed).integers(0, 256, (24 + seed % 7, 32), np.uint8)\n"
        "    print(hashlib.sha256(ask((socket,), network, grey).probability).hexdigest())\n"
        "assert 'torch' not in sys.modules\n"
    )
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", code, sockets[0], str(SHIPPED_WEIGHTS), SHA256, str(first)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in (0, 100, 200)
    ]
    for process, first in zip(asking, (0, 100, 200), strict=True):
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        expected = [
            hashlib.sha256(infer(network(), noise(seed, 24 + seed % 7, 32), "cpu").probability).hexdigest()
            for seed in range(first, first + 20)
        ]
        assert out.split() == expected


def test_an_error_keeps_its_class_its_words_and_its_hint(sockets: tuple[str, ...], tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"something else")
    with pytest.raises(WeightsError, match=r"other\.safetensors: the file changed during the run") as error:
        ask(sockets, network(path=other), picture(0))
    assert error.value.hint and "start again" in error.value.hint
    assert ask(sockets, network(), picture(0)).probability.any(), "the server goes on"


def test_servers_take_turns_and_a_device_that_fails_is_named() -> None:
    """A meta tensor has no numbers: the device starts, and fails when it is to compute."""
    with serving_on(["cpu", "meta"]) as environment:
        sockets = tuple(environment[VARIABLE].split(os.pathsep))
        folder = Path(sockets[0]).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        failed = 0
        for _ in range(4):
            try:
                ask(sockets, network(), picture(0))
            except DeviceError as error:
                failed += 1
                assert "SuperPoint on meta failed: " in str(error)
        assert failed == 2
        pids = spawned()
    assert not folder.exists()
    assert not any(psutil.pid_exists(pid) for pid in pids[-2:])


def test_a_device_that_does_not_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("long" * 30)  # sockets have no room for such a path
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with (
        pytest.raises(ExecutorError, match=r"SuperPoint on nonsense does not start: RuntimeError: .*nonsense"),
        serving_on(["nonsense"]),
    ):
        raise AssertionError("not reached")
    assert not list(deep.iterdir())


def test_a_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import time\n"
        "from physseg.pipeline.run.executors.gpu_servers import serving_on\n"
        "if __name__ == '__main__':\n"
        "    with serving_on(['cpu']) as environment:\n"
        "        print(*environment.values(), flush=True)\n"
        "        time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    socket = Path(parent.stdout.readline().strip())
    assert socket.is_socket()
    children = psutil.Process(parent.pid).children()
    assert children
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert not socket.parent.exists(), "the folder of its socket is left behind"


# --- runs -----------------------------------------------------------------------------------------------------------

SETTINGS = {"superpoint": {"device": "cuda"}}
Make = Callable[..., Manifest]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_workers_that_ask_leave_the_store_of_one_process(
    make_manifest: Make, tmp_path: Path, cpu_as_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_manifest(70)  # two shards
    job = run.prepare(manifest, tmp_path / "local.zarr", structures=["superpoint"], settings=SETTINGS, frame=FRAME)
    assert need_gpu(job.plan.tasks)
    report = run.execute(job, scheduler="local", workers=2, progress=False)
    assert (report.samples_computed, report.quarantine) == (70, ())
    assert VARIABLE not in os.environ
    run.preprocess(
        manifest,
        tmp_path / "sync.zarr",
        scheduler="sync",
        structures=["superpoint"],
        settings=SETTINGS,
        frame=FRAME,
        progress=False,
    )
    served, alone = tree(tmp_path / "local.zarr"), tree(tmp_path / "sync.zarr")
    assert served.keys() == alone.keys()
    assert [name for name in alone if served[name] != alone[name]] == []
    assert open_schema(tmp_path / "local.zarr").layers["superpoint"]["device"] == "cuda"


def test_a_killed_server_fails_the_shard_and_quarantines_nothing(
    make_manifest: Make, tmp_path: Path, cpu_as_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a shard; the same command then goes on."""
    job = run.prepare(make_manifest(6), tmp_path / "s.zarr", structures=["superpoint"], settings=SETTINGS, frame=FRAME)
    asked = 0

    def kill_at_the_third(*words: object) -> object:
        nonlocal asked
        asked += 1
        if asked == 3:
            os.kill(server, signal.SIGKILL)
        return exchange(*words)  # type: ignore[arg-type]

    exchange = superpoint_server._exchange
    monkeypatch.setattr(superpoint_server, "_exchange", kill_at_the_third)
    before = set(spawned())
    with serving_on(["cpu"]) as environment:
        (server,) = set(spawned()) - before
        monkeypatch.setenv(VARIABLE, environment[VARIABLE])
        with pytest.raises(ShardFailedError, match=r"shard 0 of .* failed: .* SuperPoint on a GPU does not answer: \S"):
            run.execute(job, scheduler="sync", progress=False)
    assert asked == 3
    assert list(read_commits(job.store, [0])) == [None]
    monkeypatch.delenv(VARIABLE)
    assert (
        run.execute(
            run.prepare(make_manifest(6), job.store, structures=["superpoint"]), scheduler="sync", progress=False
        ).quarantine
        == ()
    )


def test_a_server_that_hangs_is_not_waited_for_for_ever(
    sockets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superpoint_server, "ANSWER_SECONDS", 0.01)
    with pytest.raises(DeviceError, match="does not answer: no answer for"):
        ask(sockets, network(32), picture(0, 200, 300))
    monkeypatch.undo()
    assert ask(sockets, network(), picture(0)).probability.shape == picture(0).shape, "not the answer from before"


def test_runs_on_cpus_start_no_server(make_manifest: Make, tmp_path: Path) -> None:
    job = run.prepare(make_manifest(2), tmp_path / "s.zarr", structures=["superpoint"], frame=FRAME)
    assert not need_gpu(job.plan.tasks)
    before = spawned()
    with serving(job.plan.tasks) as environment:
        assert environment == {}
        assert spawned() == before


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
        run.execute(job, scheduler="sync", progress=False)
    assert failed.value.hint == error.value.hint
    with pytest.raises(DeviceError, match="superpoint is to be computed on a GPU"):
        prepare()  # as the store has it
    cpu = prepare(settings={"superpoint": {"device": "cpu"}})
    assert run.execute(cpu, scheduler="sync", progress=False).samples_computed == 2
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
        """Between runs, in another order, and from servers on every GPU."""
        asked = network(adaptation, precision)
        pictures = [picture(0, 384, 512), picture(1, 384, 576), picture(2, 41, 52)]
        first = [infer(asked, grey, "cuda:0").probability for grey in pictures]
        again = [infer(asked, grey, "cuda:0").probability for grey in reversed(pictures)][::-1]
        with serving_on(superpoint_inference.gpus()) as environment:
            sockets = tuple(environment[VARIABLE].split(os.pathsep))
            served = [[ask(sockets, asked, grey).probability for grey in pictures] for _ in sockets]
        for each in (again, *served):
            for got, expected in zip(each, first, strict=True):
                np.testing.assert_array_equal(got, expected)

    @pytest.mark.parametrize("adaptation", [0, 16])
    def test_float32_agrees_with_the_cpu(self, adaptation: int) -> None:
        """Sums in another order move a probability by some 1e-6; TF32, with its 10 bits, would by some 1e-3."""
        for grey in (picture(0, 384, 512), picture(1, 41, 52)):
            gpu, cpu = (infer(network(adaptation), grey, device).probability for device in ("cuda:0", "cpu"))
            np.testing.assert_allclose(gpu, cpu, atol=1e-4, rtol=0)

    def test_bfloat16_is_near(self) -> None:
        gpu, cpu = (
            infer(network(precision=p), picture(0, 384, 512), d).probability
            for p, d in (("bfloat16", "cuda:0"), ("float32", "cpu"))
        )
        assert 0 < np.abs(gpu - cpu).max() < 0.1
        assert np.abs(gpu - cpu).mean() < 2e-3

    def test_keypoints_are_nearly_all_the_same(self) -> None:
        photo = image(0, 384, 512)
        gpu, cpu = (
            decode_confidence(SuperPoint(device=device)(photo, LABELS, ignore_index=255)["superpoint"])
            for device in ("cuda", "cpu")
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
