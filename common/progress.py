"""How far a long command is: a bar on a terminal, and where its words go to a file, a line of them now and then."""

import os
import sys
import time
from typing import Any

from tqdm import tqdm

from .text import format_bytes, format_duration

LINE_SECONDS = 30.0
"""Between two lines in a file; a command that is done sooner writes none."""


class ProgressBar(tqdm):  # type: ignore[type-arg]
    """tqdm's bar, by a clock that nobody sets; in a file, lines such as `12:00:30 34 of 80,000 step, 1.1 step/s, ...`.

    tqdm asks for the time of day. Set back by an hour, it stands still for that hour and then tells negative times. Its
    bar goes back to the beginning of the line for every picture: in a file, an hour of them is one line of 100 KB.
    """

    _time = property(lambda _: time.monotonic, lambda *_: None)

    def __init__(self, *args: Any, **options: Any) -> None:
        options["disable"] = bool(options.get("disable") or os.environ.get("PHYSSEG_QUIET"))
        self.in_lines = not sys.stderr.isatty()
        self._told = self._begun = time.monotonic()
        if self.in_lines:
            options |= {"leave": False, "mininterval": 1, "miniters": 1}
        super().__init__(*args, **options)

    def refresh(self, *args: Any, **options: Any) -> Any:
        """Show how far it is; in a file, if the last line is old enough."""
        if not self.in_lines:
            return super().refresh(*args, **options)
        if not self.disable and time.monotonic() - self._told >= LINE_SECONDS:
            self._tell()
        return None

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """What tqdm calls at the end, besides `refresh`."""
        if not self.in_lines:
            return super().display(msg, pos)
        if self._told > self._begun:
            self._tell()
        return False

    def clear(self, *args: Any, **options: Any) -> None:
        """Make room for other words."""
        if not self.in_lines:
            super().clear(*args, **options)

    def _tell(self) -> None:
        known = self.format_dict
        done, total, unit = known["n"], known["total"], known["unit"]
        rate = known["rate"] or (done - known["initial"]) / max(known["elapsed"], 1e-9)
        number = format_bytes if known["unit_scale"] else "{:,}".format
        of = f" of {number(total)}" if total else ""
        if known["unit_scale"]:
            parts = [f"{number(done)}{of}", f"{format_bytes(rate)}/s"]
        else:
            parts = [f"{number(done)}{of} {unit}", f"{rate:.3g} {unit}/s"]
        if total and rate and done < total:
            parts.append(f"{format_duration((total - done) / rate)} left")
        parts += [known["postfix"]] if known["postfix"] else []
        prefix = f"{known['prefix']}: " if known["prefix"] else ""
        self.fp.write(f"{time.strftime('%H:%M:%S')} {prefix}{', '.join(parts)}\n")
        self.fp.flush()
        self._told = time.monotonic()
