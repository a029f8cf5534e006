"""`make dist URL=...`: the wheel and the source archive for a package index, whose README has absolute links.

An index shows the README without the repository around it. So this builds from a copy of the tracked files, in which
links of the README lead to the repository's address, and the metadata names that address.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURES = (".png", ".svg")


def with_absolute_links(readme: str, url: str) -> str:
    """The README with each link to a file leading to the address `url`; pictures to the file itself.

    >>> with_absolute_links("[a](docs/a.md#b), ![p](docs/p.png), [c](https://c)", "https://host/o/r")
    '[a](https://host/o/r/blob/HEAD/docs/a.md#b), ![p](https://host/o/r/raw/HEAD/docs/p.png), [c](https://c)'
    """

    def absolute(found: re.Match[str]) -> str:
        kind = "raw" if found[1].endswith(PICTURES) else "blob"
        return f"]({url}/{kind}/HEAD/{found[1]}"

    return re.sub(r"\]\((?!https?://|#)([^)#\s]+)(?=[)#])", absolute, readme)


def with_addresses(pyproject: str, url: str) -> str:
    """pyproject.toml with the repository's addresses among its own."""
    names = {"Repository": url, "Documentation": f"{url}/tree/HEAD/docs", "Issues": f"{url}/issues"}
    names["Changelog"] = f"{url}/blob/HEAD/CHANGELOG.md"
    lines = "".join(f'{name} = "{address}"\n' for name, address in names.items())
    return pyproject.replace("[project.urls]\n", f"[project.urls]\n{lines}", 1)


def build(url: str, out: Path) -> None:
    """Build both archives into `out`, and have twine look at them."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "physseg"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, tracked.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        for name, change in (("README.md", with_absolute_links), ("pyproject.toml", with_addresses)):
            (copy / name).write_text(change((copy / name).read_text(encoding="utf-8"), url), encoding="utf-8")
        subprocess.run([sys.executable, "-m", "build", "--outdir", out, copy], check=True)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *sorted(out.glob("physseg-*"))], check=True)


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[1].startswith("https://"):
        sys.exit("usage: make dist URL=https://HOST/OWNER/physseg")
    build(sys.argv[1].rstrip("/"), Path(sys.argv[2]).resolve())
