"""python docs/study_tables.py STUDY: tables and figures of docs/study.md and of the demo's page, from its files.

STUDY is the folder of `physseg demo study`, in which `physseg analyse ablation study` has written `runs/ablation.json`.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from physseg.common.text import markdown_table
from physseg.manifests.manifest import Manifest
from physseg.train.analysis.ablation import read_table
from physseg.train.analysis.ablation_table import Cell, figure, student_interval, texts
from physseg.train.demo.regime import TEST_SPLITS
from physseg.train.demo.zero_shot import packaged, score
from physseg.train.runs.run_log import read_log
from PIL import Image

DOCS = Path(__file__).parent
PAGE = DOCS.parent / "train/demo/page/study.json"
MEAN = "harmonic mean of seen and words"
PRIMARY = ("baseline", "+L^p", "+L^sac", "+L^p +L^sac")
SCENES, SIDE, GAP = 6, 160, 8
"""Number of pictures of a test set, their side and the gap between them in px."""
BEGIN, END = "<!-- tables: docs/study_tables.py -->\n", "<!-- end of tables -->\n"


def main(study: Path) -> None:
    found = json.loads((study / "runs/ablation.json").read_text(encoding="utf-8"))
    cells = {(cell["row"], cell["data"]): cell for cell in found["cells"]}
    bands = {(cell["row"], cell["data"]): cell for cell in found["boundary_iou_cells"]}
    rows = list(dict.fromkeys(row for row, _ in cells))
    told = zero_shot(study)
    scores = [["mIoU", *TEST_SPLITS, MEAN], ["zero-shot", *told]]
    scores += [[row, *(mean(cells[row, data]) for data in (*TEST_SPLITS, MEAN))] for row in rows]
    changes = [["", "against", "harmonic mean", "over seeds", "over images", "seen", "words", "Boundary IoU on seen"]]
    for row in rows:
        cell = cells[row, MEAN]
        if cell["against"]:
            others = (cells[row, "seen"], cells[row, "words"], bands[row, "seen"])
            changes.append(
                [row, cell["against"], *difference(cell), *("{} ({} to {})".format(*points(one)) for one in others)]
            )
    text = "\n\n".join(markdown_table(table) for table in (scores, changes, list(gradients(study / "runs", rows))))
    file = DOCS / "study.md"
    page = file.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    file.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{after}", encoding="utf-8")

    near = [row for row in rows if not row.startswith(("all", "scratch"))]  # the others are apart by many points
    chart, compared = DOCS / "study_differences.svg", [Cell(**cells[row, MEAN]) for row in near]
    figure("Harmonic mean of mIoU on seen and words", compared).save(chart.with_suffix(""))
    chart.with_suffix(".png").unlink()
    scenes(study).save(DOCS / "study_scenes.webp", quality=85)

    primary = [
        [row, *(mean(cells[row, data]) for data in ("seen", "words", MEAN)), *difference(cells[row, MEAN])]
        for row in PRIMARY
    ]
    seeds = len(cells["baseline", MEAN]["miou"])
    PAGE.write_text(
        json.dumps(
            {
                "date": datetime.now(UTC).date().isoformat(),
                "command": "physseg analyse ablation study study/config.toml",
                "seeds": seeds,
                "head": ["mIoU", "seen", "words", "harmonic mean", "difference", "over seeds", "over images"],
                "rows": [["zero-shot", told[0], told[2], told[-1], "", "", ""], *primary],
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )


def scenes(study: Path) -> Image.Image:
    """The first scenes of each test set, one set below the other."""
    sheet = Image.new("RGB", (SCENES * (SIDE + GAP) - GAP, len(TEST_SPLITS) * (SIDE + GAP) - GAP), "white")
    for row, split in enumerate(TEST_SPLITS):
        manifest = Manifest.read(study / f"{split}.parquet")
        for column in range(SCENES):
            image = Image.fromarray(manifest.load_image(column))
            image.thumbnail((SIDE, SIDE))
            sheet.paste(image, (column * (SIDE + GAP), row * (SIDE + GAP)))
    return sheet


def zero_shot(study: Path) -> list[str]:
    """What the package's CLIP has on the test sets without any training."""
    clip, levels = packaged(), []
    for split in TEST_SPLITS:
        manifest = Manifest.read(study / f"{split}.parquet")
        levels.append(score(clip, map(manifest.load, range(len(manifest))), manifest.vocabulary.class_names).miou())
    seen, words = levels[0], levels[2]
    return [f"{100 * level:.1f}" for level in (*levels, 2 * seen * words / (seen + words))]


def mean(cell: dict[str, Any]) -> str:
    return f"{100 * cell['mean']:.1f}" + (f" ± {100 * cell['deviation']:.1f}" if cell["deviation"] else "")


def difference(cell: dict[str, Any]) -> tuple[str, ...]:
    """The difference and its two intervals, in points."""
    return texts(Cell(**cell))[1:]


def points(cell: dict[str, Any]) -> list[str]:
    return [f"{100 * value:+.2f}" for value in (cell["difference"], *cell["difference_over_seeds"])]


def gradients(runs: Path, rows: Sequence[str]) -> Iterator[list[str]]:
    """Of each row norms and cosines of the losses' gradients in the image encoder: of each seed the mean over steps."""
    pairs = [
        f"{one}-{other}"
        for one, other in (("segmentation", "structure"), ("segmentation", "alignment"), ("structure", "alignment"))
    ]
    keys = [
        *(f"norm/{name}" for name in ("segmentation", "structure", "alignment")),
        *(f"cosine/{pair}" for pair in pairs),
    ]
    yield ["gradients", *keys]
    folders = {row.name: row.folder for row in read_table("study").rows}
    for row in rows:
        seeds: dict[str, list[float]] = defaultdict(list)
        for evaluated in sorted((runs / folders[row]).glob("seed_*/evaluations")):  # a run that has ended
            lines = read_log(evaluated.with_name("log.jsonl"), "step")
            for key in keys:
                if values := [line[f"gradient_{key}"] for line in lines if f"gradient_{key}" in line]:
                    seeds[key].append(float(np.mean(values)))
        yield [row, *(spread(seeds[key], digits=4 if "norm" in key else 2) for key in keys)]


def spread(values: list[float], digits: int) -> str:
    if not values:
        return ""
    interval = student_interval(np.array(values))
    text = f"{np.mean(values):.{digits}f}"
    return text if interval is None or digits > 2 else f"{text} ({interval[0]:.2f} to {interval[1]:.2f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
