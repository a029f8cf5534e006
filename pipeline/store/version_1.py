"""What stores of schema version 1 held: they named their arrays and left it to the program to know what they are.

Their documents are rebuilt from this table, byte for byte; it never changes.
"""

from typing import Any, Final

_YX: Final = ("y", "x")
_CELLS: Final = ("slot", "cell_y", "cell_x")

_ROWS: Final = (
    ("labels", "labels", "label", _YX, "ignore", "class ids; ignore index where unlabelled or outside", ""),
    ("frame_size", "labels", "uint16", ("edge",), 0, "height and width of the frame on the canvas, px", ""),
    ("canny", "canny", "uint8", _YX, 0, "Canny edges of the image: 0 or 255", "edges"),
    ("mask_edges", "mask_edges", "uint8", _YX, 0, "edges of the label map (EdgeGT): 0 or 255", "edges"),
    ("sift", "sift", "uint8", _YX, 0, "SIFT keypoints: square-root coded confidence 1..255, else 0", "keypoints"),
    ("superpoint", "superpoint", "uint8", _YX, 0, "SuperPoint keypoints, coded as SIFT's", "keypoints"),
    ("superpoint_dense", "superpoint", "uint8", _YX, 0, "SuperPoint probability before suppression, coded", "density"),
    ("cell_classes", "patch_counts", "label", _CELLS, "ignore", "classes in each 8-px cell", ""),
    ("cell_counts", "patch_counts", "uint8", _CELLS, 0, "pixels of each such class", ""),
    ("cell_dropped", "patch_counts", "uint32", (), 0, "labelled pixels that found no slot in their cell", ""),
)
IN_EVERY_STORE: Final = [(row[0], row[2], row[3]) for row in _ROWS if row[1] in ("labels", "patch_counts")]
"""Name, dtype and dimensions of the arrays that readers ask for without asking whether there are any."""


def describe_arrays(names: list[str], layers: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The descriptions that a store of version 2 would have of these arrays. Raises ValueError for an unknown one."""
    rows = {row[0]: row for row in _ROWS}
    if unknown := [name for name in names if name not in rows]:
        raise ValueError(f"unknown array {unknown[0]!r}")
    return [
        {
            **dict(zip(("name", "layer", "dtype", "dims", "fill", "meaning", "drawn"), rows[name], strict=True)),
            "target": "map" if rows[name][6] else "",
            "slots": layers["patch_counts"]["max_classes"] if "slot" in rows[name][3] else 0,
        }
        for name in names
    ]
