"""`physseg preprocess` and `physseg verify` as a user types them: output, exit codes, one-line errors."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from physseg.cli import main
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run.executors import sync
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.layout import open_schema

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def physseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process; returns exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["physseg", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def table(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Path:
    make_manifest(5).write(tmp_path / "m.parquet")
    return tmp_path / "m.parquet"


SMALL = ("--scheduler", "sync", "--short-edge", "32")


def test_the_whole_way(physseg: Run, table: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    code, out, _ = physseg("preprocess", table, store, *SMALL, "--dry-run")
    assert code == 0
    assert not store.exists(), "a dry run writes nothing"
    for words in ("5 samples in 1 shard", "bytes", "memory", "1 shard: not computed yet"):
        assert words in out
    code, out, _ = physseg("preprocess", table, store, *SMALL, "--set", "canny.low=30")
    assert (code, "5 of 5 samples done, 0 quarantined" in out) == (0, True)
    assert (tmp_path / "s.zarr.log.jsonl").read_text().count('"event": "shard"') == 1
    assert open_schema(store).frame == Frame(short_edge=32, max_long_edge=64, canvas=64)
    assert open_schema(store).layers["canny"]["low"] == 30
    code, out, _ = physseg("preprocess", table, store, "--scheduler", "sync")
    assert (code, "nothing: every shard is committed" in out) == (0, True)
    assert physseg("verify", store)[0] == 0
    (store / "canny/c/0/0/0").write_bytes(b"damage")
    code, out, err = physseg("verify", store)
    assert (code, "canny/c/0/0/0: expected sha256" in out, "--repair" in err) == (1, True, True)
    code, out, _ = physseg("verify", store, "--repair", "--scheduler", "sync")
    assert (code, "after repair" in out and "no fault" in out) == (0, True)
    assert physseg("verify", store)[0] == 0


def test_a_store_may_be_where_one_stands(
    physseg: Run, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert physseg("preprocess", table, tmp_path / "s.zarr", *SMALL)[0] == 0
    monkeypatch.chdir(tmp_path / "s.zarr")
    assert physseg("preprocess", table, ".", "--scheduler", "sync")[0] == 0
    assert physseg("verify", ".")[0] == 0
    assert (tmp_path / "s.zarr.log.jsonl").read_text().count('"event": "start"') == 2


def test_quarantine_is_named_and_ends_with_3(physseg: Run, table: Path, tmp_path: Path) -> None:
    (tmp_path / "data/images/002.jpg").write_bytes(b"")
    code, out, _ = physseg("preprocess", table, tmp_path / "s.zarr", *SMALL)
    assert code == 3
    assert "4 of 5 samples done, 1 quarantined" in out
    assert "quarantined 002: " in out and "images/002.jpg" in out
    assert "--retry-quarantined" in out
    code, out, _ = physseg("preprocess", table, tmp_path / "s.zarr", "--scheduler", "sync", "--allow-quarantine")
    assert code == 0


def test_a_failed_run_ends_with_1_and_an_interrupted_one_says_how_to_go_on(
    physseg: Run, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 is a wrong command line, 3 quarantine."""

    def end(error: BaseException) -> Callable[..., None]:
        def compute(*_: object) -> None:
            raise error

        return compute

    monkeypatch.setattr(sync, "compute_shard", end(OSError(28, "No space left on device")))
    code, _, err = physseg("preprocess", table, tmp_path / "s.zarr", *SMALL)
    assert (code, "No space left" in err) == (1, True)
    monkeypatch.setattr(sync, "compute_shard", end(KeyboardInterrupt()))
    code, _, err = physseg("preprocess", table, tmp_path / "s.zarr", *SMALL)
    assert (code, "re-running the command resumes" in err) == (130, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cluster", "pbs"), "'pbs'"),
        (("--cluster", "slurm", "--scheduler", "sync"), "leave --scheduler out"),
        (("--memory-limit", "much"), "'much'"),
        (("--memory-limit", ""), "''"),
    ],
)
def test_words_that_do_not_parse_are_errors_of_usage(words: tuple[str, ...], message: str, physseg: Run) -> None:
    code, _, err = physseg("preprocess", "nothing.parquet", "s.zarr", *words)
    assert (code, message in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing.parquet", "s.zarr"), "nothing.parquet: no such manifest"),
        (("TABLE", "s.zarr", "--structures", "cany"), "unknown structure extractor 'cany'"),
        (("TABLE", "s.zarr", "--set", "canny.lo=3"), "canny has no option 'lo'"),
        (("TABLE", "s.zarr", "--set", "canny.low=much"), "canny.low: expected number"),
        (
            ("TABLE", "s.zarr", "--structures", "superpoint", "--set", "superpoint.weights=no.pth"),
            "no.pth: expected a file of SuperPoint weights",
        ),
        (("TABLE", "s.zarr", "--short-edge", "999", "--canvas", "800"), "must satisfy"),
        (("TABLE", "s.zarr", "--canvas", "0"), "must satisfy"),
        (("TABLE", "TABLE/s.zarr"), "is a file"),
    ],
)
def test_errors_are_one_line_and_a_hint(
    words: tuple[str, ...], message: str, physseg: Run, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = physseg("preprocess", *(word.replace("TABLE", str(table)) for word in words))
    assert code == 1
    assert err.startswith("error: ") and message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 3
    assert not (tmp_path / "s.zarr").exists(), "nothing half-written stays behind"


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (("--short-edge", "1"), 1, "short edge: expected 8 px, a cell, or more, got 1 px"),
        (("--short-edge", "0"), 1, "must satisfy 0 < short edge"),
        (("--set", "sift.sigma=1e12"), 1, "sift.sigma: expected a number > 0, at most 1e6, got 1000000000000.0"),
        (("--set", "canny.low=inf"), 1, "canny.low: expected number, got 'inf'"),
        (("--workers", "1000000"), 2, "Invalid value for '--workers'"),
        (("--structures", " ,"), 2, "Invalid value for --structures: expected names such as canny,sift, got ' ,'"),
    ],
)
def test_absurd_options_are_refused(
    words: tuple[str, str], exit_code: int, message: str, physseg: Run, table: Path, tmp_path: Path
) -> None:
    code, _, err = physseg("preprocess", str(table), str(tmp_path / "s.zarr"), *words)
    assert code == exit_code and message in err and "Traceback" not in err
    assert not (tmp_path / "s.zarr").exists()


def test_a_store_of_an_earlier_version_with_frames_below_a_cell_resumes(
    physseg: Run, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("preprocess", table, tmp_path / "s.zarr", "--short-edge", "4", "--scheduler", "sync")
    with monkeypatch.context() as patch:
        patch.setattr("physseg.pipeline.run.prepare.CELL_PX", 1)
        assert physseg(*words)[0] == 0
    assert physseg(*words)[0] == 0
    assert physseg("preprocess", table, tmp_path / "s.zarr", "--scheduler", "sync")[0] == 0
