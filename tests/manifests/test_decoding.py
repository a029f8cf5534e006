"""Bytes to arrays: ids stay ids, colours stay colours, and nothing turns by itself."""

import io
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from physseg.common.storage.location import read_below
from physseg.manifests.decoding import check_png, decode_image, decode_label, turn
from physseg.manifests.errors import DecodeError, LabelFormatError
from physseg.manifests.labels.forms import decode_raw
from PIL import Image, ImageOps, TiffImagePlugin


def jpeg(pixels, mode="RGB", orientation=1, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=95, exif=exif, **options)
    return buffer.getvalue()


def encoded(picture, form="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


# --- photographs ------------------------------------------------------------------------------------------------------


def test_convention_images_are_rgb_and_rows_come_first():
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[..., 0] = 200  # red
    image = decode_image(jpeg(pixels))
    assert image.shape == (16, 40, 3)
    assert image.dtype == np.uint8
    assert abs(int(image[8, 8, 0]) - 200) < 5
    assert image[8, 8, 2] < 5


def test_png_images_are_exact(toys):
    assert (decode_image(encoded(Image.fromarray(toys.photo()))) == toys.photo()).all()


def test_grey_gives_three_equal_channels(toys):
    image = decode_image(jpeg(toys.photo(), mode="L"))
    assert image.shape == (24, 32, 3)
    assert (image[..., 0] == image[..., 1]).all()
    assert (image[..., 0] == image[..., 2]).all()


def test_orientation_in_the_file_is_not_applied(toys):
    assert (decode_image(jpeg(toys.photo(), orientation=6)) == decode_image(jpeg(toys.photo()))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_convention_exif_orientation_as_pillow_applies_it(orientation, toys):
    pixels = toys.photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert (turn(pixels, orientation) == expected).all()
    assert (decode_image(data, orientation) == expected).all()


def test_unknown_orientation_is_refused(toys):
    with pytest.raises(DecodeError, match=r"expected 1\.\.8, got 9"):
        decode_image(jpeg(toys.photo()), orientation=9)


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture_is_refused(data):
    for decode in (decode_image, decode_label):
        with pytest.raises(DecodeError):
            decode(data)


# --- PNG, to its end --------------------------------------------------------------------------------------------------


def test_truncated_png_is_refused_to_the_last_byte(toys):
    data = encoded(Image.fromarray(toys.photo()))
    check_png(data)
    for missing in range(1, len(data) - 8):
        with pytest.raises(DecodeError):
            check_png(data[:-missing])


def test_any_flipped_bit_of_a_png_is_found(toys):
    data = bytearray(encoded(Image.fromarray(toys.photo()[..., 0])))
    for position in range(8, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(DecodeError):
            check_png(bytes(damaged))


# --- labels -----------------------------------------------------------------------------------------------------------

IDS = np.array([[0, 1, 2, 3], [20, 181, 254, 255]], np.uint8)


def test_convention_grey_labels_are_ids():
    labels = decode_label(encoded(Image.fromarray(IDS)))
    assert labels.dtype == np.uint8
    assert (labels == IDS).all()


def test_convention_palette_labels_are_indices_never_colours():
    picture = Image.fromarray(IDS)
    picture.putpalette([(37 * i + 11) % 256 for i in range(768)])
    data = encoded(picture)
    assert Image.open(io.BytesIO(data)).mode == "P"
    assert (decode_label(data) == IDS).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("colour_type", [0, 3])
def test_convention_low_bit_labels_are_not_stretched(bits, colour_type, low_bit_png):
    ids = (np.arange(35, dtype=np.uint8) % 2**bits).reshape(5, 7)
    data = low_bit_png(ids, bits, colour_type)
    labels = decode_label(data)
    assert labels.dtype == np.uint8
    assert (labels == ids).all()
    if colour_type == 0 and bits > 1:  # the trap is real
        assert not (np.asarray(Image.open(io.BytesIO(data))) == ids).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_labels(form):
    ids = np.array([[0, 1, 255], [256, 846, 65535]], np.uint16)
    labels = decode_label(encoded(Image.fromarray(ids), form))
    assert labels.dtype == np.uint16
    assert (labels == ids).all()


def tiff(ids, **tags):
    buffer = io.BytesIO()
    extra = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        extra[int(tag.removeprefix("tag_"))] = value
    Image.fromarray(ids).save(buffer, "TIFF", tiffinfo=extra)
    return buffer.getvalue()


def test_convention_labels_in_tiffs_are_the_stored_numbers():
    """Pillow inverts 8-bit TIFFs whose 0 is white, and turns those with an orientation: ids would be others."""
    data = tiff(IDS)
    assert (decode_label(data) == IDS).all()
    at = data.index(struct.pack("<HHIH", 262, 3, 1, 1))
    white_is_zero = data[: at + 8] + b"\0" + data[at + 9 :]
    assert (np.asarray(Image.open(io.BytesIO(white_is_zero))) == 255 - IDS).all(), "the trap is real"
    turned = tiff(IDS, tag_274=3)
    assert not (np.asarray(Image.open(io.BytesIO(turned))) == IDS).all(), "the trap is real"
    for damaged, got in ((white_is_zero, "photometric interpretation 0"), (turned, "orientation 3")):
        with pytest.raises(LabelFormatError, match=got):
            decode_label(damaged)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_labels_of_several_pages_are_refused(form):
    buffer = io.BytesIO()
    Image.fromarray(IDS).save(buffer, form, save_all=True, append_images=[Image.fromarray(IDS[::-1])])
    with pytest.raises(DecodeError, match="got 2 pages"):
        decode_label(buffer.getvalue())


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow grumbles on the way
def test_any_damage_to_a_tiff_is_a_decode_error_or_leaves_a_picture():
    """Pillow's parser raises TypeError, KeyError and others on damaged headers; one of them would end a whole run."""
    draw = random.Random(0)
    data = tiff(np.arange(600, dtype=np.uint16).reshape(20, 30) % 847)
    refused = 0
    for _ in range(500):
        damaged = bytearray(data)
        damaged[draw.randrange(200)] = draw.randrange(256)
        try:
            decode_label(bytes(damaged))
        except DecodeError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_labels_are_refused_with_the_repair(mode):
    with pytest.raises(DecodeError, match="one channel of class ids") as caught:
        decode_label(encoded(Image.fromarray(np.stack([IDS, IDS[::-1], IDS], -1)).convert(mode)))
    assert "turn colour-coded maps into ids" in str(caught.value)


def test_lossy_labels_are_refused():
    with pytest.raises(DecodeError, match="PNG or TIFF, got JPEG"):
        decode_label(encoded(Image.fromarray(IDS), "JPEG"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_labels_of_three_equal_channels_are_refused_with_a_repair_that_gives_the_ids(mode):
    picture = Image.fromarray(IDS).convert(mode)
    with pytest.raises(LabelFormatError, match="got three equal ones") as caught:
        decode_label(encoded(picture))
    assert caught.value.fields["reason"] == "equal channels"
    assert "Image.open(IN).getchannel(0).save(OUT)" in caught.value.hint
    assert (decode_label(encoded(picture.getchannel(0))) == IDS).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.int16])
def test_labels_of_other_numbers_are_refused_with_a_repair_that_gives_the_ids(dtype):
    """As tools for maps and medical pictures save them."""
    data = encoded(Image.fromarray(IDS.astype(dtype)), "TIFF")
    with pytest.raises(
        LabelFormatError, match="expected ids of 8 or 16 bits, got 32-bit, signed or floating"
    ) as caught:
        decode_label(data)
    assert caught.value.fields["reason"] == "label numbers"
    assert "Image.fromarray(np.asarray(Image.open(IN)).astype(np.uint16)).save(OUT)" in caught.value.hint
    repaired = Image.fromarray(np.asarray(Image.open(io.BytesIO(data))).astype(np.uint16))
    assert (decode_label(encoded(repaired)) == IDS).all()


@pytest.mark.parametrize(("compression", "plain"), [("tiff_lzw", True), ("tiff_deflate", True), ("jpeg", False)])
def test_labels_in_tiffs_are_not_lossy(compression, plain):
    ids = np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)
    data = encoded(Image.fromarray(ids), "TIFF", compression=compression)
    if plain:
        assert (decode_label(data) == ids).all()
        return
    assert not (np.asarray(Image.open(io.BytesIO(data))) == ids).all(), "the trap is real"
    with pytest.raises(LabelFormatError, match="compression 7"):
        decode_label(data)


def test_labels_are_bounded_from_the_header_alone():
    header = encoded(Image.new("L", (4000, 4000)))[:200]  # nothing there to decode
    colours = encoded(Image.new("RGB", (4000, 4000)))[:200]
    for data, form in ((header, "ids"), (colours, "ade-full"), (colours, "voc-colours")):
        with pytest.raises(DecodeError, match="at most 10 megapixels, got 16") as caught:
            decode_raw(data, form, 10)
        assert caught.value.fields["reason"] == "label too large"


# --- files ------------------------------------------------------------------------------------------------------------


def test_bytes_come_from_folders_and_from_urls(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.bin").write_bytes(b"content")
    assert read_below(str(tmp_path), "a/x.bin") == b"content"
    assert read_below(f"file://{tmp_path}", "a/x.bin") == b"content"


def test_warnings_of_pillow_are_not_printed() -> None:
    code = (
        "import io; from PIL import Image; from physseg.manifests.photographs import check_image\n"
        "from physseg.manifests.decoding import decode_label\n"
        "Image.MAX_IMAGE_PIXELS = 50; file = io.BytesIO(); Image.new('L', (8, 9)).save(file, 'PNG')\n"
        "check_image(file.getvalue()); decode_label(file.getvalue())\n"
    )
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
