"""Files of tensors, whoever wrote them: safetensors, and PyTorch's pickles and archives. No code in a file is run.

PyTorch's own files go through its restricted unpickler. TorchScript archives (OpenAI's CLIP) never meet TorchScript,
which runs an archive's `__setstate__` while it loads: their pickle is read here, and its classes stand for nothing.
"""

import io
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...common.documents import MALFORMED
from ...common.errors import PhyssegError
from ...common.regular_files import check_parts, open_regular
from ..errors import CheckpointError

UNREADABLE = (
    *(*MALFORMED, SafetensorError, pickle.PickleError, zipfile.BadZipFile, struct.error),
    *(EOFError, RuntimeError, MemoryError, AssertionError),
)
"""What bytes of another form make the readers of such files raise."""
DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Enclose the writing of a file or folder of tensors: a full disk is the system's error that names it.

    safetensors and PyTorch raise errors of their own instead, and PyTorch none of the system's unless it is given a
    file that is open.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        system = error if isinstance(error, OSError) else error.__context__
        told = re.search(r"os error (\d+)", str(error))
        number = system.errno if isinstance(system, OSError) else int(told[1]) if told else None
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def read_tensors(path: Path, *, fault: str, hint: str | None = None) -> Any:
    """What a .safetensors file or any of PyTorch's holds: tensors by name, or whatever is around them.

    A TorchScript archive gives its state dict. `fault` is what the message begins with, before the reason.

    Raises:
        CheckpointError: It is no regular file, is torn or of another kind, claims more than it has, or would run code.
    """
    try:
        with open(open_regular(path), "rb") as file:  # noqa: PTH123
            if path.suffix == ".safetensors":
                return load_file(path)
            if not zipfile.is_zipfile(file):
                return torch.load(path, map_location="cpu", weights_only=True)
            with zipfile.ZipFile(file) as archive:
                check_parts(archive, path.stat().st_size)
                if _is_torchscript(archive):
                    return _Archive(archive).state_dict()
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise CheckpointError(f"{fault}: {error.strerror or error}", hint=hint) from error
    except UNREADABLE as error:
        raise CheckpointError(f"{fault}: {why_unreadable(error)}", hint=hint) from error


def is_torchscript(path: Path) -> bool:
    """Whether a regular file is a TorchScript archive: of PyTorch's zip files only those hold a table of constants."""
    try:
        with open(open_regular(path), "rb") as file, zipfile.ZipFile(file) as archive:  # noqa: PTH123
            return _is_torchscript(archive)
    except (OSError, *UNREADABLE):
        return False


def check_weights(tensors: Mapping[str, Tensor], where: object, hint: str | None = None) -> None:
    """Raise CheckpointError unless every tensor of floats is of at most 32 bits, finite, and as large as it says."""
    for name, tensor in tensors.items():
        wrong = ""
        other = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex()
        # Of more elements than bytes behind them one number may stand for 10^12, until it is copied.
        if other or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            wrong = "a tensor of another kind than plain numbers"
        elif tensor.is_floating_point() and tensor.dtype not in WEIGHT_DTYPES:
            wrong = f"{str(tensor.dtype).removeprefix('torch.')}"
        elif tensor.is_floating_point() and (bad := int((~torch.isfinite(tensor)).sum())):
            wrong = f"{bad} of {tensor.numel()} numbers that are NaN or infinite"
        if wrong:
            hint = hint or "fetch or copy the file again, or save its weights as float32"
            raise CheckpointError.mismatch(f"{where}: {name}", "finite float16, bfloat16 or float32", wrong, hint)


def why_unreadable(error: BaseException) -> str:
    """The cause in a few words; torch's own text would have the reader switch safe loading off."""
    if isinstance(error, PhyssegError):
        return str(error.args[0])
    if found := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
        return f"it holds a Python object ({found[1]}), and code in a file is not run"
    if str(error).startswith("Weights only load failed") or isinstance(error, (pickle.UnpicklingError, EOFError)):
        return "not a torch file, or only the beginning of one"
    first = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    return "torn or damaged" if "PytorchStreamReader" in first else first


def _is_torchscript(archive: zipfile.ZipFile) -> bool:
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Archive:
    """A TorchScript archive's tensors, by the names of its modules."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).rpartition("/")[0]
        self.storages: dict[str, Tensor] = {}
        self.inert = type("Inert", (), {"__slots__": ("state",), "__setstate__": _keep_state})

    def state_dict(self) -> dict[str, Tensor]:
        data = self.archive.read(f"{self.root}/data.pkl")
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name.endswith("PUT") and int(argument or 0) > len(data):  # its place is reserved unread
                raise pickle.UnpicklingError("a place beyond its end")
        return dict(self._named(_Unpickler(io.BytesIO(data), self).load(), "", set()))

    def storage(self, key: str, dtype: torch.dtype) -> Tensor:
        """The numbers of one part of the archive."""
        if key not in self.storages:
            self.storages[key] = torch.frombuffer(bytearray(self.archive.read(f"{self.root}/data/{key}")), dtype=dtype)
        return self.storages[key]

    def _named(self, module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
        state = getattr(module, "state", None) if isinstance(module, self.inert) else None
        if not isinstance(state, dict) or id(module) in seen:
            return
        seen.add(id(module))
        for name, value in state.items():
            # CLIP's one tensor that is an attribute of a block, neither parameter nor buffer, is its attention mask.
            if isinstance(value, Tensor) and name != "attn_mask":
                yield f"{prefix}{name}", value
            else:
                yield from self._named(value, f"{prefix}{name}.", seen)


class _Unpickler(pickle.Unpickler):
    """Knows the names that TorchScript writes, and no other; what is called is one of the functions here."""

    def __init__(self, file: io.BytesIO, archive: _Archive) -> None:
        super().__init__(file)
        self.archive = archive

    @cached_property
    def known(self) -> dict[tuple[str, str], Any]:
        lists: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch.jit._pickle", name): lambda value, *_: value
            for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
        }
        rebuild = {("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _rebuilt(*arguments[:4])}
        return {("collections", "OrderedDict"): OrderedDict, **rebuild, **lists}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".", maxsplit=1)[0] == "__torch__":
            return self.archive.inert
        if module == "torch" and name in DTYPES:
            return name
        if (module, name) in self.known:
            return self.known[module, name]
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, _ = pid
        if kind != "storage":
            raise ValueError(f"an object of kind {str(kind)[:20]!r}")
        return self.archive.storage(key, DTYPES[dtype])


def _keep_state(self: Any, state: Any) -> None:
    self.state = state


def _rebuilt(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return storage.as_strided(size, stride, offset)
