"""The run's log and folder: whole lines only, nothing twice, one process at a time."""

import json
import resource
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from physseg.train.errors import RunFolderError
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import RunLog, read_log
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ...fuzzing import mutants, survives


def open_log(folder: Path, start_step: int = 0) -> RunLog:
    return RunLog(folder / "log.jsonl", folder / "tensorboard", start_step=start_step)


def test_scalars_reach_json_and_tensorboard(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.event("start", 0, samples=3)
        log.scalars(10, {"loss/loss": 0.5, "speed/data_wait": 0.25})
    start, step = read_log(tmp_path / "log.jsonl")
    assert (start["event"], start["samples"]) == ("start", 3)
    assert (step["event"], step["step"], step["loss/loss"]) == ("step", 10, 0.5)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss/loss")] == [(10, 0.5)]


def test_a_full_disk_names_the_log(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = open_log(tmp_path)
    try:
        with pytest.raises(OSError, match="File too large") as caught, log:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
            log.event("start", 0)
        assert caught.value.filename == str(tmp_path / "log.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_names_the_board_and_its_thread_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard writes in a thread, whose traceback Python would print besides the error that we raise."""
    said: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)
    log = open_log(tmp_path)
    try:
        with pytest.raises(OSError, match="File too large") as caught, log:
            log.scalars(1, {"loss/total": 1.0})
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
            for step in range(100):
                log.picture(step, "noise", noise)
                time.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "tensorboard")
    assert said == []
    assert threading.excepthook == said.append
    with open_log(tmp_path / "other"):
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert [one.exc_type for one in said] == [ZeroDivisionError]  # anybody else's is told


def test_pictures_reach_tensorboard(tmp_path: Path) -> None:
    image = np.full((20, 30, 3), (200, 40, 90), np.uint8)
    with open_log(tmp_path) as log:
        log.picture(4, "predictions/a", image)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = board.Images("predictions/a")
    shown = np.array(Image.open(BytesIO(event.encoded_image_string)))
    assert (event.step, event.height, event.width) == (4, 20, 30)
    np.testing.assert_allclose(shown, image, atol=4)


def test_resuming_drops_what_will_be_computed_again(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in range(1, 6):
            log.scalars(step, {"loss/loss": float(step)})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "step": 6, "lo')  # killed here
    with open_log(tmp_path, start_step=3) as log:
        log.scalars(4, {"loss/loss": -4.0})
    assert [entry["loss/loss"] for entry in read_log(tmp_path / "log.jsonl", "step")] == [1, 2, 3, -4]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss/loss")] == [(1, 1), (2, 2), (3, 3), (4, -4)]


def test_a_line_is_always_json(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.event("non_finite", 3, parts={"loss": float("nan"), "list": [float("inf"), 1.0]})
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["parts"] == {"loss": "nan", "list": ["inf", 1.0]}


def test_run_folder_remembers_its_settings(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert not run.exists()
    training = {"seed": 1, "data": {"crop": 8}}
    run.create(model={"clip": "tiny"}, training=training, data=None, classes=("cat, puss", "dog"))
    assert run.exists()
    assert run.classes() == ("cat, puss", "dog")
    same = {"model": {"clip": "tiny"}, "training": training, "data": None}
    run.check_same(same, resumable=frozenset())
    other = same | {"training": {"seed": 2, "data": {"crop": 16}}, "model": {"clip": "big"}}
    with pytest.raises(RunFolderError) as caught:
        run.check_same(other, resumable=frozenset({"data.crop"}))
    assert "model.clip: run 'tiny', now 'big'; " in str(caught.value) and "crop" not in str(caught.value)
    assert "seed: run 1, now 2" in str(caught.value)
    assert "Resume with --set model.clip=tiny --set seed=1, or" in str(caught.value)
    for changed, resumable in ((other, frozenset()), (same | {"model": {"clip": "tiny", "text": 1}}, frozenset("x"))):
        with pytest.raises(RunFolderError, match="Go back to the run's settings") as caught:
            run.check_same(changed, resumable=resumable)  # of commands without --set; a value that --set cannot say
        assert "--set" not in str(caught.value)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"format": 7}'])
def test_what_is_no_run_folder_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"not a run folder|format 7, this physseg reads 1"):
        RunFolder(tmp_path).read()


def test_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.locked(), pytest.raises(RunFolderError, match="another process"), run.locked():
        pass
    with run.locked():
        pass


def test_a_torn_best_file_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    texts = ['{"step": 1', "[1]", "{}", '{"step": 4, "miou": 0.5}', "\ud800".encode("utf-8", "surrogatepass")]
    for step, miou in (('"4"', "0.5"), ("NaN", "0.5"), ("true", "0.5"), ("4.0", "0.5"), ("4", "NaN"), ("4", '"0.5"')):
        texts.append(f'{{"step": {step}, "miou": {miou}, "of": {{}}}}')
    for text in texts:
        run.best_file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(RunFolderError, match=r"best\.json: .*\("):
            run.best()
    run.best_file.write_text('{"step": 4, "miou": 1, "of": {}}')
    assert run.best() == {"step": 4, "miou": 1, "of": {}}


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"{}",
        b"null",
        b"\0" * 40,
        b"\xff\xfe",
        b'{"event": "step"}',
        b'{"step": "4", "event": "step"}',
        b'{"step": NaN, "event": "step"}',
        b"[" * 9000,
    ],
)
def test_a_foreign_line_is_named(line: bytes, tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.scalars(1, {"loss/loss": 1.0})
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())
    damaged = path.read_bytes()
    with pytest.raises(RunFolderError, match=r"log\.jsonl: line 2 is none"):
        read_log(path)
    with pytest.raises(RunFolderError, match=r"log\.jsonl: line 2 is none"):
        open_log(tmp_path, start_step=1)
    assert path.read_bytes() == damaged


def test_logs_of_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in range(1, 9):
            log.scalars(step, {"loss/loss": float(step)})
    good, path = (tmp_path / "log.jsonl").read_bytes(), tmp_path / "mutant.jsonl"
    read = 0
    for number, data in enumerate(mutants(good, seed=7, count=100)):
        path.write_bytes(data)
        read += survives(lambda: read_log(path, "step"), f"mutant {number}")
    assert 0 < read < 100
