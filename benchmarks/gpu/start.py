"""Starts the kit with the Python that runs this: `make gpu`. The standard library alone, for nothing else may be there.

Where `make gpu-wheels` has left an archive for this Python version, it is unpacked below build/ and put on PYTHONPATH,
with physseg itself as a link and its entry points as metadata. Nothing is installed.
"""

import argparse
import os
import shutil
import sys
import tarfile
import tomllib
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="Where `make gpu-wheels` left its archives.")
    args, others = parser.parse_known_args()
    version = "{}{}".format(*sys.version_info)
    archive = args.folder / f"physseg_gpu_py{version}.tar.xz"
    paths = [str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    if archive.exists():
        paths.insert(0, str(unpacked(archive, ROOT / "build" / f"gpu_site_py{version}")))
    elif any(args.folder.glob("physseg_gpu_py*.tar.xz")):
        sys.exit(
            f"{args.folder}: no archive for this Python; on a machine with a package index: "
            f"make gpu-wheels PYTHON_VERSION={sys.version_info[0]}.{sys.version_info[1]}"
        )
    sys.path[:0] = [path for path in paths if path]
    if missing := [name for name in ("torch", "numpy", "PIL", "cv2", "pyarrow", "pytest") if not find_spec(name)]:
        hint = "`make gpu-wheels HAVE=` packs all but PyTorch"
        sys.exit(f"{sys.executable} has no {', '.join(missing)}, and neither has {args.folder}; {hint}")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    # Without -P the current folder would be first, whose `common` is another.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "gpu", *others])


def unpacked(archive: Path, site: Path) -> Path:
    """The folder that holds what is in the archive; unpacked once."""
    mark, stamp = site / "unpacked", f"{archive.stat().st_size} {archive.stat().st_mtime_ns}"
    if not mark.exists() or mark.read_text() != stamp:
        print(f"unpacking {archive} to {site}", flush=True)
        shutil.rmtree(site, ignore_errors=True)
        site.mkdir(parents=True)
        with tarfile.open(archive) as content:
            content.extractall(site, filter="data")
        (site / "physseg").symlink_to(ROOT, target_is_directory=True)
        mark.write_text(stamp)
    write_metadata(site)
    return site


def write_metadata(site: Path) -> None:
    """What an installation would say of physseg: its version, and what it offers by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = site / f"physseg-{project['version']}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: physseg\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
