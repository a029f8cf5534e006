"""A store's figures in words, for the terminal and for the page."""

from collections import Counter
from typing import Final

from ...common.text import align, counted, format_bytes
from .summary import ArrayFacts, StoreSummary

NUMBERS: Final = (3, 4, 5, 6)
"""Columns of the table of arrays that hold numbers."""


def summary_lines(summary: StoreSummary) -> list[str]:
    """The whole summary as lines for a terminal."""
    lines = [summary.path, *(f"  {name:<11} {value}" for name, value in facts(summary))]
    lines += ["", *align(array_rows(summary), right=NUMBERS), measured_note(summary)]
    for name, counts in keypoint_histograms(summary).items():
        rows = [(label, str(count), "#" * round(40 * count / summary.measured_samples)) for label, count in counts]
        lines += ["", *align([(f"{name}: keypoints", "images", ""), *rows], right={0, 1})]
    lines += ["", *align(layer_rows(summary), right=set())]
    if summary.quarantine:
        shown = summary.quarantine[:5]
        lines += ["", f"quarantined ({len(summary.quarantine)}):"]
        lines += [f"  {entry.index:>7}  {entry.sample_id}: {entry.reason}" for entry in shown]
        rest = len(summary.quarantine) - len(shown)
        lines += [f"  and {rest} more; --json - lists them all"] if rest else []
    if summary.damaged:
        lines += ["", "damaged; see `physseg verify STORE`:", *(f"  {fault}" for fault in summary.damaged)]
    if summary.missing:
        lines += ["", "not finished: run `physseg preprocess MANIFEST STORE` again; it resumes"]
    return lines


def facts(summary: StoreSummary) -> list[tuple[str, str]]:
    """Name and value of what there is to say of the store as a whole."""
    frame = summary.frame
    edges = f"short edge {frame['short_edge']} px, long edge <= {frame['max_long_edge']}, canvas {frame['canvas']}"
    counts = f"{summary.done:,} done, {summary.missing:,} missing, {summary.quarantined:,} quarantined"
    rows = [
        ("data set", summary.dataset),
        (
            "vocabulary",
            f"{summary.vocabulary}, {counted(summary.num_classes, 'class')}, ignore index {summary.ignore_index}",
        ),
        ("samples", f"{summary.samples:,}: {counts}"),
        ("shards", f"{summary.shards_committed:,} of {summary.shards:,} committed"),
        ("frame", f"{edges}; cells of {summary.cell_px} px"),
        ("on disk", format_bytes(summary.disk_bytes)),
    ]
    if summary.bytes_per_image is not None and summary.projected_bytes is not None:
        one, all_ = format_bytes(summary.bytes_per_image), format_bytes(summary.projected_bytes)
        rows.append(("per image", f"{one}; {all_} for {summary.projected_images:,} such images (COCO train2017)"))
    rows += [
        ("dropped", f"{summary.dropped_pixels:,} labelled pixels found no slot in their cell"),
        ("made with", ", ".join(f"{name} {version}" for name, version in summary.made_with.items())),
        ("schema", f"version {summary.schema_version}; manifest {summary.manifest_fingerprint[:12]}"),
        ("images in", summary.root),
    ]
    return rows


def array_rows(summary: StoreSummary) -> list[tuple[str, ...]]:
    """The table of arrays as text, its heading first."""
    heading = ("array", "dtype", "shape", "on disk", "per image", "compression", "filled", "what")
    return [heading, *(_array_row(array) for array in summary.arrays)]


def keypoint_histograms(summary: StoreSummary) -> dict[str, list[tuple[str, int]]]:
    """By array of keypoints: numbers of them, such as "0 to 99", and how many of the measured images have so many."""
    found = {}
    for array in summary.arrays:
        if array.keypoints:
            most = max(array.keypoints)
            width = next(
                factor * 10**power for power in range(9) for factor in (1, 2, 5) if 8 * factor * 10**power > most
            )
            counts = Counter(number // width for number in array.keypoints)
            labels = [str(low) if width == 1 else f"{low} to {low + width - 1}" for low in range(0, most + 1, width)]
            found[array.name] = [(label, counts[place]) for place, label in enumerate(labels)]
    return found


def layer_rows(summary: StoreSummary) -> list[tuple[str, ...]]:
    """The table of layers as text, its heading first."""
    rows: list[tuple[str, ...]] = [("layer", "shards", "settings")]
    for layer in summary.layers:
        settings = ", ".join(f"{key}={value}" for key, value in layer.settings.items())
        rows.append((layer.name, f"{layer.shards_current} of {summary.shards}", settings))
    return rows


def measured_note(summary: StoreSummary) -> str:
    """What the column `filled` means."""
    samples = f"{counted(summary.measured_samples, 'sample')}"
    return f"filled: share of the values inside the frame that are not the array's fill, measured on {samples}"


def _array_row(array: ArrayFacts) -> tuple[str, ...]:
    return (
        array.name,
        array.dtype,
        " x ".join(map(str, array.shape)),
        format_bytes(array.disk_bytes),
        "-" if array.bytes_per_image is None else format_bytes(array.bytes_per_image),
        "-" if array.compression is None else f"{array.compression:.1f}x",
        "-" if array.fill is None else f"{100 * array.fill:.1f}%",
        array.meaning,
    )
