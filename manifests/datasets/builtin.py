"""physseg's own data sets by name, each an entry point of pyproject.toml. Their finders are imported when called."""

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Builtin:
    """A data set that a module of this folder finds; see `interface.Dataset`."""

    name: str
    """Name on the command line."""
    description: str
    """First lines of its command's help."""
    module: str
    """Name of the module. Its `FINDERS` has a function for each data set's name."""
    options: tuple[str, ...]
    """Keyword arguments of the function: options of its command, and what `published.benchmark` knows."""
    splits: tuple[str, ...] = ()
    """Names of the splits, the one that is evaluated first; empty where any name will do."""

    def find(self, root: Path | None, split: str, **options: Any) -> Any:
        return import_module(f".{self.module}", __package__).FINDERS[self.name](root, split, **options)


_PAINTED = ("labels", "write_labels", "listed_in", "workers", "scratch")
_ade = partial(Builtin, module="ade20k", options=("listed_in",), splits=("validation", "training"))
_voc = partial(Builtin, module="pascal_voc", options=("listed_in",), splits=("val", "train", "trainval", "train_aug"))
_pc = partial(Builtin, module="pascal_context", options=("form", *_PAINTED), splits=("val", "train"))

COCO_STUFF = Builtin(
    "coco-stuff",
    "COCO-Stuff, 171 classes, from `stuffthingmaps` PNGs or from the stuff and instances JSON files.",
    module="coco_stuff_files",
    options=("images", "stuff_json", "instances_json", "name", *_PAINTED),
)
ADE20K_150 = _ade("ade20k-150", "ADE20K, 150 classes, from ADEChallengeData2016.")
ADE20K_847 = _ade("ade20k-847", "ADE20K, 847 classes, from the full release 2021_17_01; short side capped at 512 px.")
VOC_20 = _voc("pascal-voc-20", "Pascal VOC 2012, 20 classes, background ignored, from VOCdevkit/VOC2012.")
VOC_20B = _voc("pascal-voc-20b", "Pascal VOC 2012, 20 classes and background (prompted by 39 other words).")
VOC_21 = _voc("pascal-voc-21", "Pascal VOC 2012, background (class 0, prompted as such) and 20 classes.")
CONTEXT_59 = _pc("pascal-context-59", "Pascal Context, 59 classes, from VOCdevkit/VOC2010 and trainval_merged.json.")
CONTEXT_60 = _pc("pascal-context-60", "Pascal Context, background (class 0, prompted as such) and 59 classes.")
CONTEXT_459 = _pc("pascal-context-459", "Pascal Context, 459 classes, from VOCdevkit/VOC2010 and its trainval/*.mat.")
FOLDER = Builtin(
    "folder",
    "A data set of your own: images, label pictures (8-bit, palette or 16-bit PNG) and a class file.",
    module="folder",
    options=("images", "labels", "classes", "ignore", "first_id", "name", "image_suffix", "label_suffix", "listed_in"),
)
DATA_SETS = (
    *(COCO_STUFF, ADE20K_150, ADE20K_847, VOC_20, VOC_20B, VOC_21),
    *(CONTEXT_59, CONTEXT_60, CONTEXT_459, FOLDER),
)
"""In the order of `physseg manifest --help`."""
