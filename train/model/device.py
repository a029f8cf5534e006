"""The device that a model runs on, and how exactly it multiplies."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from ...common.errors import ConfigError

Precision = Literal["tf32", "fp32", "bf16"]


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Whether CUDA's float32 matrix products and convolutions may round their factors to TF32: with "tf32" they do.

    It is as with `torch.set_float32_matmul_precision("high")`, which the reference trains and evaluates by, and which
    would change products on some CPUs as well: there, "tf32" is float32. The process's own setting is restored.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = products.fp32_precision == "tf32", convolutions.fp32_precision == "tf32"
    _allow_tf32(precision == "tf32", precision == "tf32")
    try:
        yield
    finally:
        _allow_tf32(*before)


def _allow_tf32(products: bool, convolutions: bool) -> None:
    """Sets PyTorch's older flags, which set the newer `fp32_precision` as well: torch.compile reads either.

    The newer, set by themselves as the caller may have done, make the older unreadable: they are set, never read.
    """
    with warnings.catch_warnings():  # some versions recommend the newer names alone
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA if there is one. Raises ConfigError if PyTorch cannot use it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"device: cannot use {name!r}: {first}", hint='Use "auto", "cpu" or "cuda".') from error
    return device


def fused_on(device: torch.device) -> bool | None:
    """AdamW's `fused` there: one kernel a group on CUDA, PyTorch's default elsewhere.

    A checkpoint has its own `fused`, which its run resumes with: what a run began with, it ends with.
    """
    return True if device.type == "cuda" else None
