"""What the parts found, as one Markdown page and one JSON file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common import Goal, Section, markdown_table

NAME = "RESULTS_GPU"


@dataclass(kw_only=True, slots=True)
class Entry:
    """How a part ended, and what it found."""

    what: str
    status: str
    """ "done", "failed", "stopped" at its limit, or "not started" because no time was left."""
    seconds: float
    limit: float
    device: str
    measured: str = ""
    """When, and on what machine."""
    error: str = ""
    """Exit code and last lines of a part that failed."""
    section: Section | None = None
    """What it had found until then."""

    @property
    def is_well(self) -> bool:
        """Whether nothing is to be looked at: a part that is cut short by its limit is not a fault."""
        return self.status in ("done", "stopped") and not self.missed

    @property
    def missed(self) -> int:
        return sum(not goal.met for goal in self.section.goals) if self.section else 0

    def in_short(self) -> str:
        """For a line of the terminal and a cell of the page."""
        checks = len(self.section.goals) if self.section else 0
        met = f", {checks - self.missed} of {checks} checks met" if checks else ""
        if self.status == "not started":
            return "not started: no time left"
        ended = {"stopped": f"stopped at its limit of {self.limit:.0f} s, what it had is kept"}.get(
            self.status, f"{self.status} in {self.seconds:.0f} s"
        )
        return ended + met

    def markdown(self, name: str) -> str:
        section = self.section or Section(title=self.what.capitalize(), text="Nothing was measured.", tables=[])
        head, _, body = section.markdown().partition("\n")
        parts = [f"{head} (`{name}`)", f"*{self.in_short()}. {self.measured}.*", body.strip()]
        if self.error:
            parts.append("The last lines of its output:\n\n```\n" + self.error.replace("```", "'''") + "\n```")
        return "\n\n".join(parts) + "\n"


def read(out: Path) -> dict[str, Entry]:
    """What an earlier run left in the folder."""
    file = out / f"{NAME}.json"
    if not file.exists():
        return {}
    entries = {}
    for name, values in json.loads(file.read_bytes())["parts"].items():
        section = values.pop("section")
        if section:
            section = Section(**section | {"goals": [Goal(**goal) for goal in section["goals"]]})
        entries[name] = Entry(**values, section=section)
    return entries


def write(out: Path, entries: Mapping[str, Entry], order: Sequence[str]) -> None:
    """Both files, each atomically."""
    names = [*(name for name in order if name in entries), *(name for name in entries if name not in order)]
    document = {"parts": {name: asdict(entries[name]) for name in names}}
    _replace(out / f"{NAME}.json", json.dumps(document, indent=1, default=str) + "\n")
    rows = [
        {
            "part": f"[{name}](#{_anchor(entries[name], name)})",
            "what": entries[name].what,
            "device": entries[name].device,
            "result": entries[name].in_short() if entries[name].is_well else f"**{entries[name].in_short()}**",
        }
        for name in names
    ]
    text = (
        "# Results of `make gpu`\n\nEach part says when it was measured, and on what. Weights are random, pictures "
        "generated. A part that its limit stopped has what it had measured until then."
    )
    if any(entry.device == "cpu" for entry in entries.values()):
        text += " **Parts of device `cpu` are a rehearsal at small sizes: they say that the kit runs, not how fast.**"
    pages = "\n".join(entries[name].markdown(name) for name in names)
    _replace(out / f"{NAME}.md", f"{text}\n\n{markdown_table(rows)}\n\n{pages}")


def _anchor(entry: Entry, name: str) -> str:
    """GitHub's: lower case, what is no letter left out, spaces as hyphens."""
    title = f"{entry.section.title if entry.section else entry.what.capitalize()} ({name})"
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
