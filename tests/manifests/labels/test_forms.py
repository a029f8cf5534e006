"""Label files that are no plain pictures of ids: RGB-coded, coloured, MATLAB. Every expectation worked out by hand."""

import io
import struct
import zlib

import numpy as np
import pytest
from physseg.manifests.errors import DecodeError, ManifestError
from physseg.manifests.labels.forms import decode_raw, voc_palette
from physseg.manifests.labels.ids import LabelIds
from physseg.manifests.labels.mat_file import read_cells, read_matrix
from physseg.manifests.vocabulary import Vocabulary
from PIL import Image

LABELS = np.array([[1, 255, 256], [459, 300, 2]], np.uint16)  # 2 rows, 3 columns, on both sides of 8 bits


def rgb_png(colours):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(colours, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def element(kind, body, order="<", *, small=False):
    if small:
        return struct.pack(f"{order}I", len(body) << 16 | kind) + body.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(body)) + body + b"\0" * (-len(body) % 8)


def mat_file(
    values,
    *,
    name="LabelMap",
    array_class=11,
    stored=(4, "u2"),
    order="<",
    compressed=True,
    before=b"",
):
    """A MATLAB 5 file by the book: stored in columns, `stored` = (type of the numbers, NumPy's name of it)."""
    numbers = np.asarray(values).astype(f"{order}{stored[1]}").tobytes(order="F")
    body = (
        element(6, struct.pack(f"{order}II", array_class, 0), order)
        + element(5, struct.pack(f"{order}ii", *np.shape(values)), order)
        + element(1, name.encode(), order, small=len(name) <= 4)
        + element(stored[0], numbers, order, small=len(numbers) <= 4)
    )
    matrix = element(14, body, order)
    if compressed:
        packed = zlib.compress(matrix)
        matrix = struct.pack(f"{order}II", 15, len(packed)) + packed
    return b"MATLAB 5.0 MAT-file".ljust(124) + (b"\0\x01IM" if order == "<" else b"\x01\0MI") + before + matrix


# --- the full ADE20K --------------------------------------------------------------------------------------------------


def test_convention_ade_full_ids_are_tens_of_red_and_green():
    data = rgb_png([[[0, 0, 9], [0, 57, 1], [10, 0, 2]], [[110, 162, 3], [119, 162, 4], [140, 104, 255]]])
    raw = decode_raw(data, "ade-full")
    assert raw.dtype == np.uint16
    assert raw.tolist() == [[0, 57, 256], [2978, 2978, 3688]]  # wall is 11 * 256 + 162; blue never counts


def test_ade_full_takes_rgb_pngs_of_8_bits_only(png_bytes):
    for data in (png_bytes(np.ones((2, 2), np.uint8)), rgb_png(np.ones((2, 2, 4))), b"", b"\xff\xd8\xff"):
        with pytest.raises(DecodeError):
            decode_raw(data, "ade-full")
    sixteen_bits = bytearray(rgb_png(np.ones((2, 2, 3))))
    sixteen_bits[24] = 16
    with pytest.raises(DecodeError, match="8 bits a channel"):
        decode_raw(bytes(sixteen_bits), "ade-full")


# --- VOC's colours ----------------------------------------------------------------------------------------------------


def test_the_palette_is_vocs():
    palette = voc_palette().tolist()
    assert palette[:9] == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128, 128, 128],
        [64, 0, 0],
    ]
    assert palette[20] == [0, 64, 128]
    assert palette[255] == [224, 224, 192]
    assert len({tuple(colour) for colour in palette}) == 256


def test_every_colour_becomes_its_index():
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    raw = decode_raw(rgb_png(voc_palette()[ids]), "voc-colours")
    assert (raw == ids).all()


def test_a_palette_picture_gives_its_indices_whatever_its_colours():
    ids = np.array([[0, 20, 59]], np.uint8)
    picture = Image.fromarray(ids)
    picture.putpalette([(37 * i + 11) % 256 for i in range(768)])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    assert (decode_raw(buffer.getvalue(), "voc-colours") == ids).all()


def test_smoothed_colours_are_refused_with_an_example():
    with pytest.raises(DecodeError, match=r"got \(127, 0, 0\) and others in 1 pixels"):
        decode_raw(rgb_png([[[128, 0, 0], [127, 0, 0]]]), "voc-colours")


# --- MATLAB -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(("array_class", "stored"), [(11, (4, "u2")), (6, (9, "f8")), (6, (4, "u2")), (12, (5, "i4"))])
def test_convention_mat_rows_and_columns_keep_their_places(array_class, stored, compressed, order):
    data = mat_file(LABELS, array_class=array_class, stored=stored, compressed=compressed, order=order)
    raw = decode_raw(data, "mat")
    assert raw.dtype == np.uint16
    assert raw.tolist() == [[1, 255, 256], [459, 300, 2]]


def test_small_elements_and_other_variables():
    other = mat_file(np.ones((1, 1)), name="a", array_class=9, stored=(2, "u1"))[128:]
    assert decode_raw(mat_file([[7]], array_class=9, stored=(2, "u1"), before=other), "mat").tolist() == [[7]]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "0 bytes"),
        (b"\x89PNG", "expected a MATLAB 5 file"),
        (b"MATLAB 7.3 MAT-file".ljust(600), "7.3"),
        (mat_file(LABELS, name="Segmentation"), "expected a variable 'LabelMap', got 'Segmentation'"),
        (mat_file(LABELS)[:-5], "damaged MATLAB file"),
        (mat_file(LABELS, compressed=False)[:150], "damaged MATLAB file"),
        (mat_file(LABELS, array_class=1), "matrix of real numbers"),
        (mat_file(LABELS + 0.5, array_class=6, stored=(9, "f8")), "whole numbers"),
        (mat_file(-LABELS.astype(float), array_class=6, stored=(9, "f8")), "whole numbers"),
        (mat_file(LABELS + np.nan, array_class=6, stored=(9, "f8")), "whole numbers"),
        (mat_file(LABELS.astype(int) + 65536, array_class=12, stored=(5, "i4")), "whole numbers"),
    ],
)
def test_other_and_damaged_mat_files_are_refused(data, match):
    with pytest.raises(DecodeError, match=match):
        decode_raw(data, "mat")


def test_the_size_of_a_matrix_is_bounded():
    """Doubles of a compressed matrix take a thousand times the file."""
    assert decode_raw(mat_file(LABELS), "mat", 6e-6).shape == (2, 3)
    with pytest.raises(DecodeError, match="got 2 x 3") as caught:
        decode_raw(mat_file(LABELS), "mat", 5e-6)
    assert caught.value.fields["reason"] == "label too large"


def cells_file(boundaries, *, cell_class=1, field="Boundaries"):
    """BSDS500's `groundTruth`: a cell array of structures with a Segmentation and a Boundaries matrix each."""

    def matrix(values, array_class, kind, dtype):
        numbers = np.asarray(values).astype(dtype).tobytes(order="F")
        head = element(6, struct.pack("<II", array_class, 0)) + element(5, struct.pack("<ii", *np.shape(values)))
        return element(14, head + element(1, b"") + element(kind, numbers, small=len(numbers) <= 4))

    def person(values):
        names = b"".join(text.encode().ljust(13, b"\0") for text in ("Segmentation", field))
        head = element(6, struct.pack("<II", 2, 0)) + element(5, struct.pack("<ii", 1, 1)) + element(1, b"")
        fields = matrix(np.asarray(values) + 1, 11, 4, "<u2") + matrix(values, 9, 2, "u1")
        return element(14, head + element(5, struct.pack("<i", 13), small=True) + element(1, names) + fields)

    head = element(6, struct.pack("<II", cell_class, 0)) + element(5, struct.pack("<ii", 1, len(boundaries)))
    body = element(14, head + element(1, b"groundTruth") + b"".join(map(person, boundaries)))
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\x01IM" + body


def test_cells_of_structures_give_a_field_of_each():
    first, second = [[0, 1, 0], [1, 0, 0]], [[1, 1, 1], [0, 0, 0]]
    found = read_cells(cells_file([first, second]), "groundTruth", "Boundaries")
    assert [matrix.tolist() for matrix in found] == [first, second]
    assert found[0].dtype == np.uint8
    whole = read_cells(cells_file([first]), "groundTruth", "Segmentation")
    assert (whole[0] - 1).tolist() == first


def test_other_cells_are_refused():
    with pytest.raises(DecodeError, match="'Boundaries', got 'Segmentation', 'Edges'"):
        read_cells(cells_file([[[1]]], field="Edges"), "groundTruth", "Boundaries")
    with pytest.raises(DecodeError, match="'LabelMap': expected a cell array"):
        read_cells(mat_file(LABELS), "LabelMap", "Boundaries")
    with pytest.raises(DecodeError, match="'groundTruth', got 'LabelMap'"):
        read_cells(mat_file(LABELS), "groundTruth", "Boundaries")
    with pytest.raises(DecodeError, match="expected a matrix of real numbers"):
        read_matrix(cells_file([[[1]]]), "groundTruth")
    data = cells_file([[[0, 1], [1, 0]]])
    for length in range(0, len(data) - 8, 7):
        with pytest.raises(DecodeError):
            read_cells(data[:length], "groundTruth", "Boundaries")


def test_any_cut_of_a_mat_file_is_a_decode_error():
    for compressed in (True, False):
        data = mat_file(LABELS, compressed=compressed)
        for length in range(0, len(data) - 8):
            with pytest.raises(DecodeError):
                decode_raw(data[:length], "mat")


def test_unknown_forms_are_named():
    with pytest.raises(ManifestError, match="ids, ade-full, mat, voc-colours, got 'runes'"):
        LabelIds(vocabulary=Vocabulary(name="v", classes=("a",)), raw_to_class={}, raw_ignore=(), label_form="runes")
