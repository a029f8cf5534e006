"""What a data set is, physseg's own or anybody's: a name, and a folder's samples with the meaning of their label ids.

An entry point of the group `physseg.datasets` names one (docs/plugins.md). Imports nothing heavy.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ...common.plugins import Offer, PluginError

if TYPE_CHECKING:
    from ..labels.ids import LabelIds
    from .archive import Archive


@runtime_checkable
class Dataset(Protocol):
    """A data set that `physseg manifest NAME` and `physseg evaluate --benchmark NAME` take.

    It says which files there are. Pairs are checked, decoded, hashed and written by physseg. A member `splits`, a tuple
    of names, is optional: the first is evaluated by default, and others are refused. Without it any name is passed on,
    and the default is "".
    """

    @property
    def name(self) -> str:
        """Name on the command line: that of the entry point."""

    @property
    def description(self) -> str:
        """One line for `--help`."""

    def find(
        self, root: Path, split: str
    ) -> "Archive | tuple[Iterable[tuple[str, Path, Path]], Mapping[int, str | None] | LabelIds]":
        """The samples of a split in the folder `root` (absolute), and what the numbers in their labels mean.

        Returns:
            Id, image file and label file of each sample, in any order; files that are absent are named. Then the class
            of each number that labels may hold, None for "no class"; or `LabelIds`, which know other forms than plain
            pictures of ids. An `Archive` also says how many samples were published, and where one gets them.

        Raises:
            PhyssegError: The folder holds something else.
        """


def load_dataset(offer: Offer) -> Dataset:
    """The data set that an entry point names: an object, or a class that makes one. Raises PluginError."""
    loaded = offer.load()
    with offer.blamed():
        dataset = loaded() if isinstance(loaded, type) else loaded
    if not isinstance(dataset, Dataset):
        got = f"{type(dataset).__name__} without one of them"
        raise PluginError.mismatch(f"{offer.where}: {offer.entry.value}", "name, description and find()", got)
    return dataset
