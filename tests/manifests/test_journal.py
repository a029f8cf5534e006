"""An interrupted `physseg manifest` resumes, and whatever happened in between, it writes the same bytes."""

import os
import random
import resource
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from physseg.common.atomic import file_lock
from physseg.common.processes import in_processes
from physseg.manifests import checking, journal
from physseg.manifests.checking import CheckSettings, check_samples
from physseg.manifests.errors import ManifestError
from physseg.manifests.journal import Journal
from physseg.manifests.labels.ids import LabelIds
from physseg.manifests.manifest import Vocabulary
from physseg.manifests.pairing import pair_files
from physseg.manifests.report import summary_lines

from ..forked import Forked, calling, wait_until

IDS = LabelIds(vocabulary=Vocabulary(name="ab", classes=("a", "b")), raw_to_class={0: 0, 1: 1}, raw_ignore=(255,))
COUNT = 20


@pytest.fixture
def mixed(toys):
    """Samples of every kind: usable, noted, quarantined for their image and for their label."""
    rng = np.random.default_rng(3)
    for number in range(COUNT):
        toys.image(f"images/s{number:02d}.jpg", toys.photo(seed=number), mode="L" if number % 5 == 1 else "RGB")
        ids = rng.choice(np.array([0, 1, 255, 9] if number == 7 else [0, 1, 255], np.uint8), (24, 32))
        toys.label(f"labels/s{number:02d}.png", ids)
    (toys.folder / "images/s04.jpg").write_bytes(b"")
    return toys


@pytest.fixture
def seen(monkeypatch):
    """Ids of the samples whose files are read."""
    ids = []
    read = checking._read
    monkeypatch.setattr(checking, "_read", lambda pair: (ids.append(pair.sample_id), read(pair))[1])
    return ids


def pairs_of(toys):
    return pair_files(toys.folder / "images", toys.folder / "labels")


def check(toys, out=None, *, ids=IDS, pairs=None, split="", **settings):
    with Journal(out and str(out)) as records:
        return check_samples(
            pairs or pairs_of(toys), ids, dataset="t", split=split, settings=CheckSettings(**settings), journal=records
        )


def everything(checked):
    """All that is written and said of a run."""
    pixels = (checked.class_pixels.tolist(), checked.ignored_pixels, checked.raw_ids)
    return checked.manifest.to_bytes(), pixels, list(summary_lines(checked, None, verbose=True))


def name_of(number):
    return f"s{number:02d}"


def cut(path, seed):
    """The journal as a kill may leave it: anything but its first line may be missing."""
    data = path.read_bytes()
    path.write_bytes(data[: random.Random(seed).randint(data.index(b"\n") + 1, len(data))])
    return path.read_bytes().count(b"\n") - 1


@pytest.mark.parametrize("seed", range(6))
def test_any_interruption_plus_resume_equals_one_run(mixed, seen, tmp_path, capsys, seed):
    whole = everything(check(mixed))
    seen.clear()
    check(mixed, tmp_path / "m.parquet")
    kept = cut(tmp_path / "m.parquet.journal", seed)
    seen.clear()
    capsys.readouterr()
    assert everything(check(mixed, tmp_path / "m.parquet")) == whole
    assert seen == [name_of(number) for number in range(kept, COUNT)]
    assert (f"resuming: {kept} of {COUNT} samples were checked before" in capsys.readouterr().err) == (kept > 0)


def test_an_error_in_the_middle_keeps_what_was_checked(mixed, seen, tmp_path, capsys):
    whole = everything(check(mixed))
    label = mixed.folder / "labels/s18.png"
    data = label.read_bytes()
    pairs = pairs_of(mixed)
    label.unlink()
    with pytest.raises(ManifestError, match=r"s18\.png: cannot be read: No such file"):
        check(mixed, tmp_path / "m.parquet", pairs=pairs)
    assert f"journal: 16 of {COUNT} samples are checked, the same command resumes" in capsys.readouterr().err
    label.write_bytes(data)
    seen.clear()
    assert everything(check(mixed, tmp_path / "m.parquet")) == whole
    assert seen == ["s16", "s17", "s18", "s19"]


def test_files_that_changed_are_checked_again(mixed, seen, tmp_path):
    check(mixed, tmp_path / "m.parquet")
    image, label = mixed.folder / "images/s02.jpg", mixed.folder / "labels/s03.png"
    image.write_bytes(image.read_bytes()[:-9])
    status = label.stat()
    os.utime(label, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    for name in ("images/s19.jpg", "labels/s19.png"):
        (mixed.folder / name).unlink()
    mixed.image("images/new.jpg")
    mixed.label("labels/new.png")
    pairs = [replace(pair, note="seen") if pair.sample_id == "s05" else pair for pair in pairs_of(mixed)]
    seen.clear()
    again = check(mixed, tmp_path / "m.parquet", pairs=pairs)
    assert seen == ["new", "s02", "s03", "s05"]
    assert [sample.sample_id for sample in again.manifest.samples] == ["new", *map(name_of, range(COUNT - 1))]
    assert everything(again) == everything(check(mixed, pairs=pairs))


OTHERS = {
    "split": {"split": "val"},
    "settings": {"max_megapixels": 50.0},
    "meaning of ids": {"ids": replace(IDS, raw_ignore=(9, 255))},
    "class names": {"ids": replace(IDS, vocabulary=Vocabulary(name="ab", classes=("a", "c")))},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_other_settings_begin_again(mixed, seen, tmp_path, capsys, change):
    check(mixed, tmp_path / "m.parquet")
    seen.clear()
    again = check(mixed, tmp_path / "m.parquet", **change)
    assert len(seen) == COUNT
    assert "by other settings or another physseg, or damaged: all samples are checked again" in capsys.readouterr().err
    assert everything(again) == everything(check(mixed, **change))


def test_nothing_of_other_settings_is_left_behind(mixed, seen, tmp_path):
    """Rows of other settings behind a new first line would be taken for its own by the run after the next."""
    check(mixed, tmp_path / "m.parquet")
    pairs = pairs_of(mixed)
    label = mixed.folder / "labels/s10.png"
    data, status = label.read_bytes(), label.stat()
    label.unlink()
    with pytest.raises(ManifestError, match="cannot be read"):
        check(mixed, tmp_path / "m.parquet", pairs=pairs, max_megapixels=50.0)
    label.write_bytes(data)
    os.utime(label, ns=(status.st_atime_ns, status.st_mtime_ns))
    with Journal(str(tmp_path / "m.parquet")) as records:
        known = checking.PairCheck.of(pairs, ids=IDS, split="", settings=CheckSettings(max_megapixels=50.0))
        records.begin(known.digest, pairs)
        assert records.pending.tolist() == [*range(8, COUNT)]


def test_the_number_of_workers_is_no_setting(mixed, seen, tmp_path):
    check(mixed, tmp_path / "m.parquet", workers=1)
    seen.clear()
    check(mixed, tmp_path / "m.parquet", workers=2)
    assert not seen


def test_a_check_of_the_data_set_is_known_by_its_name_not_by_its_address(mixed):
    checks = [partial(lambda word, *_: word, "x") for _ in range(2)]
    digests = {checking.PairCheck.of(pairs_of(mixed), ids=IDS, split="", cross_check=each).digest for each in checks}
    assert len(digests) == 1
    assert digests != {checking.PairCheck.of(pairs_of(mixed), ids=IDS, split="").digest}


def test_other_versions_and_garbage_begin_again(mixed, seen, tmp_path, monkeypatch):
    whole = everything(check(mixed))
    path = tmp_path / "m.parquet.journal"
    with monkeypatch.context() as patch:
        patch.setattr(journal, "FORMAT_VERSION", 0)
        check(mixed, tmp_path / "m.parquet")
    for spoil in (lambda data: data, lambda _: b"notes of somebody\n", lambda _: b"\0" * 9000, lambda data: data[:30]):
        path.write_bytes(spoil(path.read_bytes()))
        seen.clear()
        assert everything(check(mixed, tmp_path / "m.parquet")) == whole
        assert len(seen) == COUNT


@pytest.mark.parametrize("damage", ["a flipped bit", "zeros at the end", "half a line"])
def test_what_follows_damage_is_checked_again(mixed, seen, tmp_path, damage):
    whole = everything(check(mixed))
    path = tmp_path / "m.parquet.journal"
    check(mixed, tmp_path / "m.parquet")
    lines = path.read_bytes().splitlines(keepends=True)
    middle = bytearray(lines[12])
    if damage == "a flipped bit":
        middle[40] ^= 1
        lines[12] = bytes(middle)
    elif damage == "zeros at the end":
        lines[12:] = [bytes(5000)]
    else:
        lines[12:] = [lines[12][:-1]]
    path.write_bytes(b"".join(lines))
    seen.clear()
    assert everything(check(mixed, tmp_path / "m.parquet")) == whole
    assert seen == [name_of(number) for number in range(11, COUNT)]


# --- the command ------------------------------------------------------------------------------------------------------


def words(out="m.parquet"):
    return (
        "manifest",
        "folder",
        "--root",
        ".",
        "--classes-file",
        "classes.txt",
        "--allow-quarantine",
        "--out",
        str(out),
    )


@pytest.fixture
def folder(mixed, monkeypatch):
    """The current folder, with a reference manifest `whole.parquet`."""
    monkeypatch.chdir(mixed.folder)
    mixed.lines("classes.txt", "a", "b")
    return mixed.folder


@pytest.fixture
def whole(folder, physseg):
    assert physseg(*words("whole.parquet"))[0] == 0
    assert not list(folder.glob("*.journal"))
    return (folder / "whole.parquet").read_bytes()


SLOW = """
import time
from physseg.manifests import checking
read = checking._read
checking._read = lambda pair: (time.sleep(0.02), read(pair))[1]
checking.CHUNK = 1
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_stopped_resumes(folder, whole, physseg, number):
    with Forked(calling(*words(), before=SLOW), folder / "output") as process:
        kept = folder / "m.parquet.journal"
        wait_until(lambda: kept.exists() and kept.read_bytes().count(b"\n") > 3)
        process.send_signal(number)
        assert process.wait(30) != 0
        assert "Traceback" not in process.text()
    assert not (folder / "m.parquet").exists()
    code, _, err = physseg(*words())
    assert (code, "resuming: " in err) == (0, True)
    assert (folder / "m.parquet").read_bytes() == whole
    assert not kept.exists()


def test_two_commands_for_one_manifest(folder, whole, physseg):
    with file_lock(folder / "m.parquet.journal"):
        code, _, err = physseg(*words())
    assert (code, err.splitlines()[0]) == (1, "error: m.parquet.journal: another `physseg manifest` writes it")
    assert physseg(*words())[0] == 0
    assert (folder / "m.parquet").read_bytes() == whole


def test_a_full_disk(folder, whole, physseg):
    full = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4000, {resource.RLIM_INFINITY}))"
    with Forked(calling(*words(), before=f"{SLOW}\n{full}"), folder / "output") as process:
        assert process.wait(60) == 1
        assert "error: m.parquet.journal: File too large\n  hint: make room" in process.text()
    assert not (folder / "m.parquet").exists()
    code, _, err = physseg(*words())
    assert (code, "resuming: " in err) == (0, True)
    assert (folder / "m.parquet").read_bytes() == whole


def test_a_journal_that_cannot_be_opened(folder, physseg):
    for make, told in ((Path.mkdir, "Is a directory"), (os.mkfifo, "a FIFO, not a regular file")):
        make(folder / "m.parquet.journal")
        code, _, err = physseg(*words())
        assert (code, f"error: m.parquet.journal: {told}" in err) == (1, True)
        (folder / "m.parquet.journal").rename(folder / f"was {told}")


def test_nothing_stays_where_the_arguments_are_wrong(folder, physseg):
    """Every sample was read and none can be used: other arguments would not take a row of those."""
    (folder / "classes.txt").write_text("a\n")
    for label in sorted((folder / "labels").iterdir())[::-1]:
        Path(label).write_bytes(b"")
    code, _, err = physseg(*words())
    assert (code, f"none of {COUNT} samples can be used" in err) == (1, True)
    assert not list(folder.glob("m.parquet*"))


def test_a_manifest_by_url_has_no_journal(folder, whole, physseg):
    code, _, _ = physseg(*words(f"file://{folder}/by_url.parquet"))
    assert (code, (folder / "by_url.parquet").read_bytes()) == (0, whole)
    assert Journal("s3://bucket/m.parquet").path is None
    assert Journal(f"file://{folder}/m.parquet").path == folder / "m.parquet.journal"


@pytest.mark.torture
def test_kills_at_random_points(folder, whole, physseg):
    """Every attempt adds some samples, then it is killed with its processes, until one ends."""
    rng, kept = random.Random(11), folder / "m.parquet.journal"
    fast = f"{SLOW}checking.SAMPLES_PER_PROCESS = 2"
    deaths = 0
    for turn in range(3):
        while not (folder / "m.parquet").exists():
            done, more = num_lines(kept), rng.randint(1, 3)
            with Forked(calling(*words(), "--workers", "2", before=fast), folder / f"output{turn}") as process:
                wait_until(lambda: num_lines(kept) > done + more or process.poll() is not None)  # noqa: B023
                time.sleep(rng.uniform(0, 0.03))
                process.kill()
                deaths += process.wait(30) != 0
                process.wait_until_gone()
        assert (folder / "m.parquet").read_bytes() == whole
        (folder / "m.parquet").unlink()
        kept.unlink(missing_ok=True)  # a kill may come between the manifest and this
    assert deaths > 3


def num_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


# --- processes --------------------------------------------------------------------------------------------------------


class FromCode:
    """A cross-check that another process makes of its source."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __call__(self, pair, raw):
        return eval(self.code)(pair, raw)

    def __reduce__(self):
        return eval, (self.code,)


def cross_checked(toys, code, out=None, **settings):
    with Journal(out and str(out)) as records:
        return check_samples(
            pairs_of(toys),
            IDS,
            dataset="t",
            split="",
            journal=records,
            settings=CheckSettings(**settings),
            cross_check=FromCode(code) if isinstance(code, str) else code,
        )


def test_two_processes_make_the_same_manifest(mixed, monkeypatch):
    monkeypatch.setattr(checking, "SAMPLES_PER_PROCESS", 8)
    begun = []
    monkeypatch.setattr(
        checking, "in_processes", lambda *a, **k: (begun.append(k["workers"]), in_processes(*a, **k))[1]
    )
    code = "lambda pair, raw: f'{pair.sample_id}: {raw.sum()}'"
    one, two = (everything(cross_checked(mixed, code, workers=workers)) for workers in (1, 2))
    assert one == two
    assert begun == [2]


def test_what_cannot_be_sent_to_processes_is_checked_in_this_one(mixed, monkeypatch, caplog):
    monkeypatch.setattr(checking, "SAMPLES_PER_PROCESS", 8)
    told = []
    whole = everything(check(mixed))
    assert everything(cross_checked(mixed, lambda pair, raw: told.append(pair.sample_id) or "", workers=2)) == whole
    assert told == [name_of(number) for number in range(COUNT)]
    assert "one process checks all samples" in caplog.text


def test_a_process_that_is_killed_is_an_error_with_a_hint(mixed, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(checking, "SAMPLES_PER_PROCESS", 8)
    monkeypatch.setattr(checking, "CHUNK", 1)
    code = "lambda pair, raw: pair.sample_id == 's15' and __import__('os')._exit(9) or ''"
    with pytest.raises(ManifestError, match="a process that checked samples was killed") as caught:
        cross_checked(mixed, code, tmp_path / "m.parquet", workers=2)
    assert "--workers" in caught.value.hint
    assert "are checked, the same command resumes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cpus", "workers", "count", "expected"),
    [
        (8, 0, 127, 1),
        (8, 0, 1024, 8),
        (8, 0, 500, 3),
        (2, 0, 10**7, 2),
        (2, 64, 10**7, 64),
        (8, 1, 10**7, 1),
    ],
)
def test_number_of_processes(cpus, workers, count, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(checking, "available_cpus", lambda: cpus)
    check = checking.PairCheck(root=tmp_path, ids=IDS, split="", settings=CheckSettings(workers=workers))
    assert check.workers(count) == expected


# --- dry run ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_will_be_read_and_writes_nothing(folder, physseg):
    before = sorted(folder.rglob("*"))
    code, out, _ = physseg(*words()[:-2], "--dry-run")
    size = sum(file.stat().st_size for kind in ("images", "labels") for file in (folder / kind).iterdir())
    lines = out.splitlines()
    assert code == 0
    assert lines[2] == f"reads        {COUNT} samples, about {size / 1000:.1f} KB in two files each"
    assert lines[3] == f"tried        {COUNT} of them, evenly spread: {COUNT - 2} usable, 2 quarantined"
    assert "             - s04: images/s04.jpg: expected a picture, got 0 bytes" in lines
    assert lines[-1].endswith("in 1 process")
    assert physseg(*words(), "--dry-run")[0] == 0
    assert sorted(folder.rglob("*")) == before


def test_the_time_of_a_dry_run_by_hand(mixed, monkeypatch):
    """Samples that take 0.01 s each, of which a few are tried, from all parts of the data set."""
    tried = []
    read = checking._read
    monkeypatch.setattr(checking, "_read", lambda pair: (time.sleep(0.01), tried.append(pair.sample_id), read(pair))[2])
    monkeypatch.setattr(checking, "TRIAL_SAMPLES", 10)
    monkeypatch.setattr(checking, "CHUNK", 2)
    trial = checking.try_samples(pairs_of(mixed), IDS, dataset="t", split="")
    assert sorted(tried) == [name_of(number) for number in range(0, COUNT, 2)]
    assert tried[:2] == ["s00", "s10"]
    assert (trial.num_samples, trial.workers, len(trial.manifest)) == (COUNT, 1, 10)
    assert 0.01 < trial.sample_seconds < 0.03
    low, high = trial.wall_seconds
    assert low < COUNT * trial.sample_seconds < high
    assert high > 1.1 * low
    monkeypatch.setattr(checking, "TRIAL_SECONDS", 0.01)
    tried.clear()
    assert len(checking.try_samples(pairs_of(mixed), IDS, dataset="t", split="").manifest) == len(tried) < 10


def test_a_dry_run_paints_nothing(folder, physseg):
    command = ("manifest", "coco-stuff", "--images", "images", "--stuff-json", "s.json", "--write-labels", "new")
    code, _, err = physseg(*command, "--dry-run")
    assert (code, "--dry-run paints no labels" in err) == (1, True)
    assert not (folder / "new").exists()
