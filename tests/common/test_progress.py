"""Bars on a terminal, lines in a file."""

import io
import re
import sys
import time

import pytest
from physseg.common import progress
from physseg.common.progress import ProgressBar
from tqdm import tqdm


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> str:
    """What 100 steps of that many seconds write, by a clock that is set back in the middle."""
    now, day = [0.0], [1e9]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: day[0])
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar(total=200, initial=100, unit="step") as bar:
        for step in range(100):
            now[0] += seconds
            day[0] += seconds - 3600 * (step == 50)
            bar.update()
            bar.set_postfix_str(f"loss {step}")
            if step == 50:
                tqdm.write("words between", file=stream)
    return stream.getvalue()


def test_a_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    written = steps(io.StringIO(), monkeypatch, seconds=2)
    lines = written.splitlines()
    assert "\r" not in written and "words between" in lines
    told = [line for line in lines if line != "words between"]
    assert len(told) == 200 // progress.LINE_SECONDS + 1  # one of every 30 seconds, and the end
    assert re.fullmatch(r"\d\d:\d\d:\d\d 115 of 200 step, 0\.5 step/s, 3 min left, loss 13", told[0])
    assert re.fullmatch(r"\d\d:\d\d:\d\d 200 of 200 step, 0\.5 step/s, loss 99", told[-1])


def test_a_short_command_writes_nothing_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps(io.StringIO(), monkeypatch, seconds=0.2) == "words between\n"


def test_a_bar_that_is_switched_off_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with ProgressBar(total=2, disable=True) as bar:
        bar.update()
        bar.set_postfix_str("loss 1")
    assert not stream.getvalue()


def test_a_terminal_gets_a_bar_whose_times_are_never_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    written = steps(Terminal(), monkeypatch, seconds=2)
    assert written.count("\r") > 50 and "100%" in written
    assert "[03:20<00:00" in written.replace(" ", "") and "-1" not in written


def test_bytes_are_told_in_their_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with ProgressBar.wrapattr(io.BytesIO(), "write", total=3_000_000, desc="a.bin") as file:
        time.sleep(0.01)
        file.write(bytes(1_500_000))
    assert re.search(r"a\.bin: 1\.5 MB of 3\.0 MB, \d.* MB/s, .* left", stream.getvalue())
