"""How good the package's SuperPoint detector is beside the classical ones, by `physseg superpoint evaluate`.

    python benchmarks/superpoint_quality.py [--weights FILE] [--sequence graf ...] [--photographs FOLDER]

Without photographs only shapes are measured. Sequences are folders of img1, img2, ... with H1to2p, ... (the VGG affine
covariant regions set has eight).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common import Goal, Section, machine
from physseg.structure_extractors.superpoint import SHIPPED_WEIGHTS
from physseg.structure_extractors.superpoint_training.commands import evaluate_weights
from physseg.structure_extractors.superpoint_training.detectors import CLASSICAL
from physseg.structure_extractors.superpoint_training.evaluation import Rows

ADAPTED = "ours, adaptation 16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS)
    parser.add_argument("--sequence", type=Path, action="append", default=[])
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--per-kind", type=int, default=50)
    args = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()) + "\n")
    section = measure(args.sequence, args.photographs, weights=args.weights, per_kind=args.per_kind)
    print(section.markdown())


def measure(
    sequences: Sequence[Path], photographs: Path | None, *, weights: Path = SHIPPED_WEIGHTS, per_kind: int = 50
) -> Section:
    rows = evaluate_weights(
        weights, sequences=sequences, photographs=photographs, per_kind=per_kind, out=None, device="cpu", say=print
    )
    measures = list(dict.fromkeys(measure for row in rows.values() for measure in row))
    table = [
        {"detector": name} | {measure: f"{row[measure]:.3f}" if measure in row else "-" for measure in measures}
        for name, row in rows.items()
    ]
    return Section(
        title="SuperPoint beside the classical detectors",
        text=f"AP: average precision within 3 px on {9 * per_kind} held-out pictures of shapes, 120x160, neighbours "
        "suppressed up to 2 px (r4: up to 4 px, as in extraction, which removes true keypoints, too; the last row is "
        "what the keypoints themselves get). Other columns: repeatability within 3 px of the 300 best points at "
        "240x320, suppression radius 4, border 4: sequences by their names, then photographs warped (viewpoint) and "
        "changed in light, sharpness and noise (light+noise). OpenCV's detectors are ranked by their own scores.",
        tables=[table],
        goals=list(goals(rows, [folder.name for folder in sequences])),
    )


def goals(rows: Rows, sequences: Sequence[str]) -> list[Goal]:
    ours = rows["ours"]
    found = [
        Goal(text="AP on clean shapes at least 0.95", measured=f"{ours['AP clean']:.3f}", met=ours["AP clean"] >= 0.95),
        Goal(text="AP on noisy shapes at least 0.88", measured=f"{ours['AP noisy']:.3f}", met=ours["AP noisy"] >= 0.88),
    ]
    for measure in (*sequences, "viewpoint"):
        if measure in ours:
            best = max(rows[name][measure] for name in CLASSICAL)
            adapted = rows[ADAPTED][measure]
            found.append(
                Goal(
                    text=f"{measure}, with adaptation 16, within 0.05 of the best classical detector",
                    measured=f"{adapted:.3f}, {best:.3f}",
                    met=adapted >= best - 0.05,
                )
            )
    if "light+noise" in ours:
        best = max(rows[name]["light+noise"] for name in CLASSICAL)
        found.append(
            Goal(
                text="light and noise above all classical detectors",
                measured=f"{ours['light+noise']:.3f}, {best:.3f}",
                met=ours["light+noise"] > best,
            )
        )
    return found


if __name__ == "__main__":
    main()
