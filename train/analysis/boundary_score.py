"""How well maps of edges or keypoints match true ones within a tolerance: precision, recall, F over a sweep.

A predicted pixel is right if a true pixel lies within the tolerance (Euclidean, pixel centre to pixel centre), a true
pixel is found if a predicted one does: two distance transforms. Edges are thinned to one pixel before, the predicted
ones at each threshold, so that width neither costs nor pays. (That can be switched off: a head that says which cells of
4 px hold an edge makes areas where edges are dense, and an area's skeleton misses most of them.) With the maps of
several people (BSDS) a predicted pixel is right if any of them drew it, and recall counts the pixels of all of them.

This is **not** the benchmark program of BSDS, which pairs pixels one to one (a bipartite matching): here several
predicted pixels may share a true one, so that our F is somewhat higher wherever edges are doubled or ragged. Scores of
two maps by this measure can be compared with each other, not with published ones.

Counts are summed over images before P, R and F are taken. ODS is the best F over thresholds, one for the whole set;
OIS takes each image's own best threshold (Arbelaez et al. 2011, section 3.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

TOLERANCE = 0.0075
"""Share of the image's diagonal within which pixels match, unless said otherwise: BSDS's maxDist."""


@dataclass(slots=True)
class BoundaryScore:
    """Counts of one kind of map over a set of images, for K thresholds or settings."""

    thresholds: tuple[float, ...]
    """K thresholds or settings in which the maps of an image differ."""
    counts: list[Counts] = field(default_factory=list)
    """(K, 4) of each image: predicted pixels, right ones of them, true pixels, found ones of them."""
    mirrored: list[Counts] = field(default_factory=list)
    """(K, 4) counts of the predicted maps mirrored left to right: what maps of this density hit by chance."""

    def add(self, predicted: Sequence[Mask], truths: Sequence[Mask], tolerance_px: float) -> None:
        """Count one image: K predicted maps (H, W), and one or more true ones."""
        near_truth = distances(np.logical_or.reduce(truths)) <= tolerance_px
        straight, turned = [], []
        for mask in predicted:
            near = distances(mask) <= tolerance_px
            straight.append(_count(mask, near, truths, near_truth))
            turned.append(_count(mask[:, ::-1], near[:, ::-1], truths, near_truth))
        self.counts.append(np.array(straight, dtype=np.int64))
        self.mirrored.append(np.array(turned, dtype=np.int64))

    @property
    def curve(self) -> list[dict[str, float]]:
        """Threshold, precision, recall, F, and F of the mirrored maps, for each threshold."""
        rates, chance = precision_recall_f(sum(self.counts)), precision_recall_f(sum(self.mirrored))
        return [
            {"threshold": threshold, "precision": float(p), "recall": float(r), "f": float(f), "f_mirrored": float(c)}
            for threshold, p, r, f, c in zip(self.thresholds, *rates, chance[2], strict=True)
        ]

    @property
    def best(self) -> dict[str, float]:
        """The point of the curve with the highest F, the lower threshold on a tie: its F is the ODS."""
        return max(self.curve, key=lambda point: point["f"])

    @property
    def ois(self) -> float:
        """F of the sums of counts at each image's own best threshold."""
        chosen = [counts[precision_recall_f(counts)[2].argmax()] for counts in self.counts]
        return float(precision_recall_f(np.sum(chosen, axis=0)[None])[2][0])

    def document(self) -> dict[str, Any]:
        """Everything as JSON, fractions 0..1; `num_maps`: images, for "people" maps of theirs."""
        return {"ods": self.best, "ois": self.ois, "num_maps": len(self.counts), "curve": self.curve}


def precision_recall_f(counts: Any) -> tuple[npt.NDArray[np.float64], ...]:
    """Precision, recall and their harmonic mean, each (K,), of counts (K, 4); 0 where there is nothing to divide by."""
    predicted, right, true, found = np.asarray(counts, dtype=np.float64).T
    precision, recall = (part / np.maximum(whole, 1) for part, whole in ((right, predicted), (found, true)))
    total = precision + recall
    return precision, recall, np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def distances(mask: Mask) -> npt.NDArray[np.float32]:
    """Euclidean distance in px of every pixel to the nearest one of the mask (H, W); infinite where there is none."""
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    return np.asarray(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


def thin(mask: Mask) -> Mask:
    """Edges (H, W) one pixel wide (Zhang and Suen 1984, by OpenCV)."""
    # One pixel of paper around: OpenCV's leaves the outermost rows and columns as they are.
    padded = np.pad(mask.astype(np.uint8) * 255, 1)
    return np.asarray(cv2.ximgproc.thinning(padded)[1:-1, 1:-1] > 0)


def peaks(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The map (H, W) where it is highest within 4 px on each side, as keypoint extractors suppress; 0 elsewhere.

    A plateau keeps all of its pixels.
    """
    highest = cv2.dilate(probabilities, np.ones((9, 9), np.uint8))
    return np.where(probabilities >= highest, probabilities, np.float32(0))


def edge_maps(
    probabilities: npt.NDArray[np.float32], thresholds: Sequence[float], *, thinned: bool = True
) -> list[Mask]:
    """For each threshold the edges where the map (H, W) reaches it, thinned unless said otherwise."""
    reached = [probabilities >= threshold for threshold in thresholds]
    return [thin(mask) for mask in reached] if thinned else reached


def keypoint_maps(probabilities: npt.NDArray[np.float32], thresholds: Sequence[float]) -> list[Mask]:
    """For each threshold the peaks of the map (H, W) that reach it."""
    found = peaks(probabilities)
    return [found >= threshold for threshold in thresholds]


def tolerance_of(height: int, width: int, tolerance_px: float | None) -> float:
    """The tolerance in px: as given, or `TOLERANCE` of the diagonal."""
    return TOLERANCE * float(np.hypot(height, width)) if tolerance_px is None else tolerance_px


def _count(mask: Mask, near: Mask, truths: Sequence[Mask], near_truth: Mask) -> tuple[int, int, int, int]:
    true, found = (sum(int((truth & part).sum()) for truth in truths) for part in (np.True_, near))
    return int(mask.sum()), int((mask & near_truth).sum()), true, found
