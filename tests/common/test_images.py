"""What is encoded decodes to the same picture, in RGB order."""

import base64
import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from physseg.common.images import data_url, encode_jpeg, encode_png
from PIL import Image


def decoded(data: bytes) -> npt.NDArray[np.int64]:
    """By another decoder than the encoder's library."""
    return np.asarray(Image.open(io.BytesIO(data)), np.int64)


@given(
    st.one_of(
        arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5))),
        arrays(np.uint16, st.tuples(st.integers(1, 5), st.integers(1, 5))),
        arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3))),
    )
)
def test_png_keeps_every_pixel(pixels: npt.NDArray[np.uint8]) -> None:
    assert np.array_equal(decoded(encode_png(pixels)), pixels)
    assert encode_png(pixels[::-1]) == encode_png(pixels[::-1].copy()), "a view is as good as a copy"


def test_jpeg_keeps_colours_about() -> None:
    pixels = np.full((16, 16, 3), (200, 100, 20), np.uint8)
    assert np.abs(decoded(encode_jpeg(pixels)) - pixels).max() <= 3  # of the colour transform and its rounding
    assert decoded(encode_jpeg(pixels[..., 0])).shape == (16, 16)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert len(encode_jpeg(noise, quality=30)) < len(encode_jpeg(noise)) < len(encode_jpeg(noise, quality=99))


@pytest.mark.parametrize("pixels", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 4), np.uint8), np.zeros(4, np.uint8)])
def test_pixels_of_another_form_are_an_error(pixels: npt.NDArray[np.uint8]) -> None:
    for encode in (encode_png, encode_jpeg):
        with pytest.raises(ValueError, match=str(pixels.dtype)):
            encode(pixels)
    with pytest.raises(ValueError, match="uint16"):
        encode_jpeg(np.zeros((2, 2), np.uint16))  # type: ignore[arg-type]


def test_a_data_url_holds_the_bytes() -> None:
    head, data = data_url(b"\x00\xff\x10", "png").split(",")
    assert (head, base64.b64decode(data)) == ("data:image/png;base64", b"\x00\xff\x10")
