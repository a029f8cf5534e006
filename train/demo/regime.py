"""What a pretrained CLIP is fine-tuned and tested on: seen classes, and what its captions knew besides.

| split | things | grounds |
|---|---|---|
| `train`, `seen` | seen colours with seen patterns | seen |
| `combinations` | seen colours with seen patterns that never meet in `train` | seen |
| `words` | colours and patterns that are in no training label | none of `train` |
| `shifted` | as `seen`, with other textures and under other light | seen |

All test splits have the same class list, so that the names of the seen classes compete with the others.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from .drawing import UInt8
from .scenes import SceneFolders, deal, write_split
from .world import OUTLINES, SIZES, WORLD, Thing, draw

_SEEN, _WORDS = WORLD["regime"]["seen"], WORLD["regime"]["words"]
_PAIRS = [
    (f"{c} {p}", (i - j) % len(_SEEN["patterns"]))
    for (i, c), (j, p) in product(enumerate(_SEEN["colours"]), enumerate(_SEEN["patterns"]))
]
COMBINATIONS = tuple(name for name, diagonal in _PAIRS if diagonal in (0, 2))
"""Two for each colour and for each pattern, which occur in four others."""
SEEN_THINGS = tuple(name for name, _ in _PAIRS if name not in COMBINATIONS)
WORD_THINGS = tuple(f"{colour} {pattern}" for colour, pattern in product(_WORDS["colours"], _WORDS["patterns"]))

GROUPS: dict[str, tuple[str, ...]] = {
    "seen": (*_SEEN["grounds"], *SEEN_THINGS),
    "combinations": COMBINATIONS,
    "words": (*_WORDS["grounds"], *WORD_THINGS),
}
"""Class names by what training knows of them; all of them in this order are the class list of the test splits."""
TEST_SPLITS = ("seen", "combinations", "words", "shifted")


def write_regime(root: Path, *, num_train: int = 400, num_test: int = 100, seed: int = 0) -> SceneFolders:
    """Write `train` and the test splits under `root`, as `scenes.write_scenes` does."""
    folders = SceneFolders(root=root)
    classes = [name for group in GROUPS.values() for name in group]
    write_split(folders, "train", GROUPS["seen"], drawn("train", GROUPS["seen"], num_train, seed), num_train)
    for split in TEST_SPLITS:
        write_split(folders, split, classes, drawn(split, classes, num_test, seed), num_test)
    return folders


def drawn(split: str, classes: tuple[str, ...] | list[str], count: int, seed: int) -> Iterator[tuple[UInt8, UInt8]]:
    """Images (H, W, 3) and label maps (H, W), places in `classes`, of a split."""
    things = {"combinations": COMBINATIONS, "words": WORD_THINGS}.get(split, SEEN_THINGS)
    number = ("train", *TEST_SPLITS).index(split)
    dealt = deal(things, np.random.default_rng([seed, number]))
    grounds = (_WORDS if split == "words" else _SEEN)["grounds"]
    outlines = list(OUTLINES)
    for index in range(count):
        rng = np.random.default_rng([seed, number, index])
        names = [next(dealt).split(" ") for _ in range(2 + index % 4)]
        some = [Thing(colour, pattern, str(rng.choice(outlines))) for colour, pattern in names]
        under = [str(ground) for ground in rng.permutation(grounds)[: rng.integers(1, 4)]]
        scene = draw(some, under, rng, size=SIZES[rng.integers(len(SIZES))], shifted=split == "shifted")
        yield scene.image, scene.labels(classes)
