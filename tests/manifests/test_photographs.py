"""Photographs: damage that decoders pass over is named, and what is read has colours that all decoders agree on."""

import io
import os
import random
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from physseg.manifests.decoding import decode_image
from physseg.manifests.errors import DecodeError
from physseg.manifests.photographs import NOT_STRICT, check_image, colour_fault, jpeg_warning, read_photograph
from PIL import Image

PHOTOGRAPHS = sorted((Path(__file__).parents[2].parent / "shared" / "data").rglob("*.jpg"))
PAGE = 4096


def jpeg(pixels, mode="RGB", orientation=1, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(pixels).convert(mode), "JPEG", **{"quality": 95, "exif": exif} | options)


def encoded(picture, form="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


# --- what a file says -------------------------------------------------------------------------------------------------


def test_facts_are_those_of_the_stored_picture(toys):
    facts = check_image(jpeg(toys.photo(), orientation=8))
    assert (facts.height, facts.width, facts.mode, facts.orientation) == (24, 32, "RGB", 8)
    assert facts.size_after(8) == (32, 24)
    assert facts.size_after(3) == (24, 32)


@pytest.mark.parametrize(("mode", "expected"), [("L", "L"), ("CMYK", "CMYK")])
def test_modes_of_jpegs(mode, expected, toys):
    assert check_image(jpeg(toys.photo(), mode=mode)).mode == expected


def test_sixteen_bit_images_are_recognised():
    assert ";16" in check_image(encoded(Image.fromarray(np.full((4, 4), 1000, np.uint16)))).mode


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [1, 2, 3, 50, 400])
def test_truncated_jpeg_is_refused_to_the_last_byte(missing, progressive, toys):
    data = jpeg(toys.photo(), progressive=progressive)
    check_image(data)
    for allowed in (False, True):  # what is not there cannot be allowed
        with pytest.raises(DecodeError, match=r"(?i)truncated|not a picture"):
            check_image(data[:-missing], allow_jpeg_warnings=allowed)


def test_png_images_are_checked_to_the_end_too(toys):
    data = encoded(Image.fromarray(toys.photo()))
    with pytest.raises(DecodeError, match="ends after"):
        check_image(data[:-1])  # Pillow does not mind


def test_absurd_size_is_refused_from_the_header_alone():
    data = encoded(Image.new("L", (4000, 4000)))[:200]  # nothing there to decode
    with pytest.raises(DecodeError, match="at most 10 megapixels, got 16"):
        check_image(data, max_megapixels=10)


def test_other_formats_are_refused(toys):
    with pytest.raises(DecodeError, match="expected JPEG or PNG, got GIF"):
        check_image(encoded(Image.fromarray(toys.photo()), "GIF"))


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(DecodeError):
        check_image(data)


# --- damaged JPEGs ----------------------------------------------------------------------------------------------------


def texture(seed):
    """A picture whose JPEG is some twenty pages of 4 KiB."""
    noise = np.random.default_rng(seed).integers(0, 256, (320, 400, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.2)


def zeroed_page(data, other, start):
    return data[:start] + bytes(PAGE) + data[start + PAGE :]


def page_missing(data, other, start):
    return data[:start] + data[start + PAGE :]


def foreign_page(data, other, start):
    return data[:start] + other[start : start + PAGE] + data[start + PAGE :]


def line_ends(data, other, start):
    return data.replace(b"\n", b"\r\n")


def cut_with_end_mark(data, other, start):
    return data[: len(data) // 2] + b"\xff\xd9"


def zero_filled_tail(data, other, start):
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


DAMAGE = [zeroed_page, page_missing, foreign_page, line_ends, cut_with_end_mark, zero_filled_tail]


def pillow_accepts(data):
    try:
        Image.open(io.BytesIO(data)).load()
    except (OSError, SyntaxError):
        return False
    return True


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_damage_that_pillow_passes_over_is_a_warning_by_name(damage, options):
    files = [jpeg(texture(seed), quality=90, **options) for seed in range(4)]
    passed_over = noticed = 0
    for number, data in enumerate(files):
        assert check_image(data).note == ""
        damaged = damage(data, files[number - 1], PAGE * random.Random(number).randrange(1, len(data) // PAGE))
        if not pillow_accepts(damaged):
            continue
        passed_over += 1
        assert not (decode_image(damaged) == decode_image(data)).all(), "the pixels are others"
        warning = jpeg_warning(damaged)
        if not warning:
            continue
        noticed += 1
        with pytest.raises(DecodeError, match=re.escape(f"libjpeg warns: {warning}")) as caught:
            check_image(damaged)
        assert caught.value.fields["reason"] == "JPEG warning"
        assert "--allow-jpeg-warnings" in caught.value.hint
        assert check_image(damaged, allow_jpeg_warnings=True).note == f"JPEG warning allowed: {warning}"
    assert passed_over or damage is zero_filled_tail, "the trap is real"
    assert noticed >= passed_over - 1  # codes of another file may happen to end where ours would


def test_a_sampling_that_the_strict_decoder_does_not_know_is_noted():
    """Chroma at a third of the width, by hand: one unit of three grey luma blocks and one of each chroma."""
    grey = encoded(Image.new("RGB", (24, 8), (128, 128, 128)), "JPEG", subsampling=0)
    sizes, codes = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda") + 14
    luma, chroma = "00" + "1010", "00" + "00"  # of the usual tables: no change, end of block
    bits = (3 * luma + 2 * chroma).ljust(32, "1")
    data = bytearray(grey[:codes] + int(bits, 2).to_bytes(4, "big") + b"\xff\xd9")
    data[sizes + 11] = 0x31
    assert (decode_image(bytes(data)) == 128).all(), "a whole picture"
    assert jpeg_warning(bytes(data)) is None
    assert check_image(bytes(data)).note == NOT_STRICT
    with pytest.raises(DecodeError, match="truncated"):
        check_image(bytes(data[:-2]))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (3, 17), (24, 32)])
def test_whole_jpegs_of_any_kind_and_size_pass(mode, size, toys):
    for progressive in (False, True):
        assert check_image(jpeg(toys.photo(*size), mode=mode, progressive=progressive)).note == ""


@pytest.mark.skipif(not PHOTOGRAPHS, reason="no shared folder with real photographs beside the repository")
def test_no_real_photograph_is_refused_and_its_damage_is_noticed():
    files = [path.read_bytes() for path in PHOTOGRAPHS[::20]]
    assert not [path for path in PHOTOGRAPHS[::5] if jpeg_warning(path.read_bytes())]
    noticed = dict.fromkeys(DAMAGE, 0)
    for number, data in enumerate(files):
        start = PAGE * (len(data) // PAGE // 2)
        for damage in DAMAGE:
            noticed[damage] += jpeg_warning(damage(data, files[number - 1], start)) != ""
    assert min(noticed.values()) >= 0.9 * len(files), noticed


# --- what no check can mend -------------------------------------------------------------------------------------------


def test_animated_pictures_are_refused(toys):
    """Pillow and OpenCV see different ones of an APNG."""
    frames = [Image.fromarray(toys.photo(seed=seed)) for seed in range(2)]
    options = [{}, {"default_image": True}]
    for data in (encoded(frames[0], save_all=True, append_images=frames[1:], **option) for option in options):
        with pytest.raises(DecodeError, match="animated") as caught:
            check_image(data)
        assert caught.value.fields["reason"] == "animated picture"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_plain_colours_are_read(mode, tmp_path, toys):
    Image.fromarray(toys.photo()).convert(mode).save(tmp_path / "a.png")
    expected = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert (read_photograph(tmp_path / "a.png") == expected).all()


def cut_out(mode):
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    return picture if mode == "RGBA" else picture.convert(mode)


@pytest.mark.parametrize(
    ("picture", "options", "mode"),
    [
        (cut_out("RGBA"), {}, "RGBA"),
        (cut_out("LA"), {}, "LA"),
        (cut_out("P"), {"transparency": 0}, "P with transparency"),
        (cut_out("RGB"), {"transparency": (255, 0, 0)}, "RGB with transparency"),
        (cut_out("CMYK"), {}, "CMYK"),
        (Image.fromarray(np.full((8, 8), 4095, np.uint16)), {}, "I;16"),  # 12 bits in 16
    ],
    ids=["RGBA", "LA", "P", "RGB", "CMYK", "12 in 16"],
)
def test_colours_that_decoders_read_differently_are_refused(picture, options, mode, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(encoded(picture, "JPEG" if mode == "CMYK" else "PNG", **options))
    assert colour_fault(mode)
    with pytest.raises(DecodeError, match=f"expected 8-bit RGB or greyscale, got {mode}"):
        read_photograph(path)


def test_a_16_bit_colour_picture_is_refused(tmp_path):
    data = cv2.imencode(".png", np.full((8, 8, 3), 4095, np.uint16))[1].tobytes()
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DecodeError, match="got RGB;16"):
        read_photograph(tmp_path / "a.png")


def test_orientation_is_applied_and_only_files_are_opened(tmp_path, toys):
    (tmp_path / "a.jpg").write_bytes(jpeg(toys.photo(), orientation=6))
    assert read_photograph(tmp_path / "a.jpg").shape == (32, 24, 3)
    os.mkfifo(tmp_path / "b.jpg")
    with pytest.raises(OSError, match="a FIFO"):
        read_photograph(tmp_path / "b.jpg")
