"""Whether a data set keeps its contract: `physseg.testing.check_dataset`, for the tests of its package."""

import tempfile
from pathlib import Path

from ...common.errors import PhyssegError
from ...common.plugins import ConformanceError, require
from ..checking import CheckSettings, check_samples
from .archive import Archive
from .interface import Dataset
from .published import chosen_split, look


def check_dataset(
    dataset: Dataset | type[Dataset], root: str | Path, *, split: str | None = None, max_samples: int = 100
) -> None:
    """Look for a data set's samples in a folder, twice, and at what they hold.

        def test_camvid(tmp_path):
            ...  # write two pictures and their labels as the archive has them
            check_dataset(CamVid(), tmp_path)

    Args:
        dataset: What the entry point names: the object, or the class that makes it.
        root: A folder with a few samples, made by the test or real.
        split: Name of the split; None for the default.
        max_samples: Number of samples that are read, evenly spread.

    Raises:
        ConformanceError: It has no name, description or find(). The samples change from call to call, two have one
            id, or a file is missing. A label cannot be read, or holds an id that is neither a class nor ignored. An
            empty or a missing folder is taken for the data set, or is an error of several lines or of another kind.
    """
    if isinstance(dataset, type):
        dataset = dataset()
    require(isinstance(dataset, Dataset), dataset, "name, description and find()", "an object without one of them")
    for text in (dataset.name, dataset.description):
        one_line = isinstance(text, str) and len(text.splitlines()) == 1
        require(one_line, dataset, "a name and a description of one line each", repr(text))
    try:
        split = chosen_split(dataset, split)
        archive, again = (look(dataset, Path(root), split) for _ in range(2))
        if (archive.pairs(), archive.ids) != (again.pairs(), again.ids):
            raise ConformanceError("expected the same samples and ids at each call of find(), got others")
        _check_samples(archive, split, max_samples)
    except PhyssegError as error:
        raise ConformanceError(f"{dataset.name}: {error.args[0]}", hint=error.hint) from error
    with tempfile.TemporaryDirectory(prefix="physseg.") as empty:
        for folder in (Path(empty), Path(empty) / "missing"):
            _check_refused(dataset, folder, split)


def _check_samples(archive: Archive, split: str, max_samples: int) -> None:
    """Every file is there, and what is read of them can be used."""
    if missing := list(archive.missing()):
        raise ConformanceError("; ".join(missing))
    pairs = archive.pairs()
    chosen = pairs[:: -(-len(pairs) // max_samples)]
    settings = CheckSettings(exif="ignore", workers=1)
    for sample in check_samples(chosen, archive.ids, dataset="", split=split, settings=settings).manifest.quarantined:
        raise ConformanceError(f"sample {sample.sample_id}: {sample.problem}")


def _check_refused(dataset: Dataset, folder: Path, split: str) -> None:
    """A folder that holds nothing is no data set, and an error that people can read says so."""
    try:
        if not (pairs := look(dataset, folder, split).pairs()):
            return
        got = f"{len(pairs)} samples"
    except (PhyssegError, OSError) as error:
        if "\n" not in str(error.args[0]):
            return
        got = "several lines"
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
    where = f"{dataset.name}: find() in {'a missing' if folder.name == 'missing' else 'an empty'} folder"
    raise ConformanceError.mismatch(where, "no samples, or PhyssegError or OSError in one line", got)
