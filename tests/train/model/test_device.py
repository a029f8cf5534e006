"""How CUDA multiplies float32: PyTorch's flags, which can be read without CUDA; a CPU multiplies exactly."""

import pytest
import torch
from physseg.train.model.device import Precision, matmul_precision
from torch import backends

pytestmark = pytest.mark.filterwarnings("error")


def tf32() -> tuple[bool, bool]:
    """Whether CUDA may round factors of matrix products and of convolutions, asked by the newer names and the older."""
    newer = backends.cuda.matmul.fp32_precision == "tf32", backends.cudnn.conv.fp32_precision == "tf32"
    assert newer == (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)
    return newer


@pytest.mark.parametrize(
    ("precision", "expected"), [("tf32", (True, True)), ("fp32", (False, False)), ("bf16", (False, False))]
)
def test_flags_are_set_within_and_put_back(precision: Precision, expected: tuple[bool, bool]) -> None:
    assert tf32() == (False, True), "PyTorch's own default"
    with pytest.raises(ValueError), matmul_precision(precision):
        assert tf32() == expected
        assert torch.get_float32_matmul_precision() == ("high" if expected[0] else "highest")
        with matmul_precision("tf32"):
            assert tf32() == (True, True)
        assert tf32() == expected
        raise ValueError
    assert tf32() == (False, True)


def test_a_setting_of_the_caller_comes_back() -> None:
    with matmul_precision("tf32"), matmul_precision("fp32"):
        pass
    with matmul_precision("fp32"):
        with matmul_precision("tf32"):
            pass
        assert tf32() == (False, False)


@pytest.mark.parametrize("precision", ["tf32", "fp32"])
def test_a_cpu_multiplies_float32_whatever_is_set(precision: Precision) -> None:
    """Bit for bit; oneDNN's own flags, which `set_float32_matmul_precision` would change, are left alone."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(64, 96, generator=generator) for _ in range(2))
    image, kernel = torch.randn(1, 8, 32, 32, generator=generator), torch.randn(8, 8, 3, 3, generator=generator)
    before = backends.mkldnn.matmul.fp32_precision, backends.mkldnn.conv.fp32_precision
    product, convolved = left @ right.T, torch.conv2d(image, kernel)
    with matmul_precision(precision):
        assert (backends.mkldnn.matmul.fp32_precision, backends.mkldnn.conv.fp32_precision) == before
        assert torch.equal(left @ right.T, product)
        assert torch.equal(torch.conv2d(image, kernel), convolved)


@pytest.mark.parametrize("newer", ["tf32", "ieee"])
def test_newer_names_of_the_caller_are_no_obstacle(newer: str) -> None:
    """PyTorch refuses to read its older flags where the newer ones were set, as its notes recommend since 2.9."""
    backends.cuda.matmul.fp32_precision = backends.cudnn.conv.fp32_precision = newer  # type: ignore[attr-defined]
    try:
        with matmul_precision("tf32"):
            assert tf32() == (True, True)
        assert tf32() == (newer == "tf32",) * 2
    finally:
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = False, True
