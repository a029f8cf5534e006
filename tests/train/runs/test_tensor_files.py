"""Files of tensors from other people: none runs code, none takes memory that it has not, what is wrong is named."""

import errno
import io
import os
import pickle
import resource
import warnings
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from physseg.train.errors import CheckpointError
from physseg.train.runs import tensor_files
from physseg.train.runs.tensor_files import check_weights, is_torchscript, read_tensors, writing_to
from torch import Tensor, nn

from ...fuzzing import bounded, mutants, survives


class Payload(nn.Module):
    """Writes a file when TorchScript loads it."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.marker = str(marker)

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def __getstate__(self):  # type: ignore[no-untyped-def]
        return (self.weight, self.marker, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]):  # type: ignore[no-untyped-def]
        self.weight = state[0]
        self.marker = state[1]
        self.training = state[2]
        torch.save(self.weight, self.marker)


class Block(nn.Module):
    """As in OpenAI's archives: float16 weights, and a mask that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
        self.attn_mask = torch.full((2, 2), float("-inf"))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_1(x)) + self.attn_mask.sum()


class Published(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(3, 4))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(Block(), Block())
        self.register_buffer("input_resolution", torch.tensor(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer.resblocks(x) + self.positional_embedding


def archived(module: nn.Module, path: Path, *, traced: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TorchScript itself: the format is what it is
        script = torch.jit.trace(module, torch.ones(3, 4, dtype=torch.half)) if traced else torch.jit.script(module)
        torch.jit.save(script, str(path))
    return path


def read(path: Path) -> object:
    content = read_tensors(path, fault=f"{path}: cannot be read")
    if isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values()):
        check_weights(content, path)
    return content


def test_no_code_of_an_archive_is_run(tmp_path: Path) -> None:
    path = archived(Payload(tmp_path / "marker"), tmp_path / "payload.pt")
    assert is_torchscript(path)
    assert not (tmp_path / "marker").exists()
    read(path)
    assert not (tmp_path / "marker").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(str(path))
    assert (tmp_path / "marker").exists()  # so the payload was one


@pytest.mark.parametrize("traced", [False, True])
def test_a_published_archive_has_the_tensors_of_its_state_dict(tmp_path: Path, traced: bool) -> None:
    torch.manual_seed(0)
    module = Published().half()
    found = read(archived(module, tmp_path / "clip.pt", traced=traced))
    expected = module.state_dict()
    assert isinstance(found, dict) and found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def rezipped(path: Path, change: dict[str, bytes], *, compress: bool = False) -> Path:
    """The archive with other contents under some of its names."""
    with zipfile.ZipFile(path) as old:
        parts = {name: change.get(name.partition("/")[2], old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as new:
        for name, data in parts.items():
            new.writestr(name, data)
    return path


class Call:
    def __reduce__(self) -> object:
        return os.system, ("touch marker",)


NESTED = b"\x80\x02c__torch__\nA\n)\x81q\x00" + b"".join(
    b"c__torch__\nA\n)\x81}(X\x01\x00\x00\x00ah%cX\x01\x00\x00\x00bh%cubq%c" % (i, i, i + 1) for i in range(60)
)
SELF = b"\x80\x02c__torch__\nA\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pickle.dumps(Call(), 2), r"posix\.system.*code in a file is not run"),
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", r"builtins\.eval"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "only the beginning"),
        (b"\x80\x02(X\x07\x00\x00\x00storageX\x0b\x00\x00\x00HalfStorage", "cannot be read"),
    ],
)
def test_what_else_a_pickle_can_do_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = rezipped(archived(Published(), tmp_path / "clip.pt"), {"data.pkl": data})
    with pytest.raises(CheckpointError, match=words), bounded():
        read(path)


@pytest.mark.parametrize("data", [NESTED + b".", SELF], ids=["2^60 paths", "itself"])
def test_modules_that_hold_each_other_end(tmp_path: Path, data: bytes) -> None:
    path = rezipped(archived(Published(), tmp_path / "clip.pt"), {"data.pkl": data})
    with bounded():
        assert read(path) == {}


def test_parts_that_claim_more_than_the_file_has_are_refused(tmp_path: Path) -> None:
    path = archived(Published(), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=r"clip\.pt: .*claim more"):
        read(rezipped(path, {"data/0": bytes(10**8)}, compress=True))
    torch.save({"w": torch.zeros(10**7)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt: .*claim more"):
        read(rezipped(tmp_path / "w.pt", {}, compress=True))


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.tensor([1.0, float("nan"), float("inf")]), "2 of 3 numbers that are NaN or infinite"),
        (torch.zeros(2, dtype=torch.float64), "float64"),
        (torch.zeros(1).expand(10**6, 10**6), "another kind"),
        (torch.zeros(2, 2).to_sparse(), "another kind"),
        (torch.zeros(2, dtype=torch.complex64), "another kind"),
    ],
)
def test_unfit_tensors_are_named(tensor: Tensor, words: str, tmp_path: Path) -> None:
    torch.save({"good": torch.ones(1), "layer.weight": tensor}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=rf"w\.pt: layer\.weight: .*{words}"), bounded():
        read(tmp_path / "w.pt")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.pt")
    (tmp_path / "folder.pt").mkdir()
    for path in (tmp_path / "fifo.pt", tmp_path / "folder.pt", Path("/dev/zero"), tmp_path / "none.pt"):
        assert not is_torchscript(path)
        with pytest.raises(CheckpointError, match=path.name), bounded():
            read(path)


def test_an_error_of_ours_is_not_taken_for_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archived(Published(), tmp_path / "clip.pt")
    monkeypatch.setattr(tensor_files, "_rebuilt", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read(path)


def good_files(folder: Path) -> dict[str, bytes]:
    archived(Published().half(), folder / "script.pt")
    state = Published().state_dict()
    torch.save(state, folder / "zip.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, folder / "x.safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("name", ["script.pt", "zip.pt", "legacy.pt", "x.safetensors"])
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    good = good_files(tmp_path)[name]
    refused = 0
    for number, data in enumerate(mutants(good, seed=0, count=100)):
        (tmp_path / name).write_bytes(data)
        refused += not survives(lambda: read(tmp_path / name), f"mutant {number}")
    assert refused > 30
    if name == "script.pt":
        with zipfile.ZipFile(io.BytesIO(good)) as archive:
            inner = archive.read("script/data.pkl")
        for number, data in enumerate(mutants(inner, seed=1, count=100)):
            (tmp_path / name).write_bytes(good)
            rezipped(tmp_path / name, {"data.pkl": data})
            survives(lambda: read(tmp_path / name), f"data.pkl, mutant {number}")


def test_a_full_disk_is_the_systems_error_whoever_writes(tmp_path: Path) -> None:
    """safetensors, PyTorch and Python each have an error of their own, and most name no file."""
    tensors, file = {"weight": torch.zeros(100_000)}, tmp_path / "file"

    def of_torch() -> None:
        with file.open("wb") as opened:
            torch.save(tensors, opened)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in (
        lambda: safetensors.torch.save_file(tensors, file),
        of_torch,
        lambda: file.write_bytes(bytes(100_000)),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(OSError, match="File too large") as caught, writing_to(Path("run/checkpoint")):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, "run/checkpoint")
    with pytest.raises(RuntimeError, match="of ours"), writing_to(Path("run/checkpoint")):
        raise RuntimeError("a bug of ours")
