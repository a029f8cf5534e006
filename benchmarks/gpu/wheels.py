"""`make gpu-wheels`: all that the kit needs besides PyTorch, for a Python version, in one archive.

Wheels are downloaded, unpacked, rid of what the kit does not use, and packed by LZMA with a filter for x86 code. That
is less than half of the wheels' size. On the other machine `make gpu` unpacks it: no pip, no network, no rights.
"""

import argparse
import fnmatch
import io
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PLATFORMS = [f"manylinux{name}_x86_64" for name in ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "_2_12", "2010", "1")]
LEFT_OUT = {
    # PyTorch and what comes with it.
    *("torch", "torchvision", "triton", "setuptools", "sympy", "networkx"),
    # For weights, masks of annotations, foreign readers of stores and parts of kornia, which the kit does not use.
    *("huggingface-hub", "timm", "pycocotools", "zarr", "pydantic", "kornia-rs"),
    # For TensorBoard's server, and for colours of help pages.
    *("grpcio", "tensorboard-data-server", "markdown", "werkzeug", "rich", "markdown-it-py"),
    "opencv-contrib-python-headless",
}
INSTEAD = ("opencv-python-headless==4.11.0.86", "pyarrow<19", "pytest>=8.3", "pytest-xdist>=3.6")
"""Of OpenCV only `analyse` needs contrib; these releases are smaller by 10 and 2 MB, packed."""
STAND_INS = {"kornia_rs/__init__.py": b"io = None  # for kornia, which reads files by it\n"}
"""Modules that are imported and never used: 4 MB, packed."""
STRIPPED = "zstandard/backend_c.*"
"""Nine tenths of it are debug information."""
TRIMMED = (
    "*/tests/*",
    "*.pyi",
    "*/sboms/*",
    "*.pyx",
    "*.pxd",
    "*.pxi",
    "*/include/*",
    "pyarrow/*flight*",
    "pyarrow/src/*",
    "pyarrow/*_tests*",
    "cv2/data/*",
    "numpy/f2py/*",
    "numpy/_core/_simd*",
    "PIL/_avif*",
    "pillow.libs/libavif*",
    "zstandard/_cffi*",
    "tensorboard/webfiles.zip",
    "open_clip/model_configs/*",
    "*.data/*",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python-version", required=True, help="such as 3.12")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--have", default="", help="names, with commas, that the other machine has beside PyTorch")
    args = parser.parse_args()
    downloads = args.folder / f"downloads_{args.python_version}"
    have = {canonicalize_name(name) for name in args.have.split(",") if name}
    wheels = download(args.python_version, downloads, without=LEFT_OUT | have)
    digits = args.python_version.replace(".", "")
    archive = args.folder / f"physseg_gpu_py{digits}.tar.xz"
    sizes = pack(wheels, archive)
    for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:8]:
        print(f"{size / 1e6:7.1f} MB unpacked  {name}")
    loaded = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB, from {len(wheels)} wheels of {loaded / 1e6:.1f} MB")


def download(version: str, folder: Path, *, without: set[str]) -> list[Path]:
    """Wheels of what physseg needs, and of what these need, but for `without`."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    environment = {"python_version": version, "python_full_version": f"{version}.0"}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "implementation_name": "cpython"}
    known: dict[str, Path] = {}
    versions: dict[str, SpecifierSet] = {}
    wanted = list(applying([*document["project"]["dependencies"], *INSTEAD], set(), environment))
    while wanted:
        extras: dict[str, set[str]] = {}
        for need in wanted:
            name = canonicalize_name(need.name)
            if name not in without | known.keys():
                extras.setdefault(name, set()).update(need.extras)
                versions[name] = versions.get(name, SpecifierSet()) & need.specifier
        if extras:
            fetch(version, folder, [f"{name}{versions[name]}" for name in extras])
        wanted = []
        for name, asked in extras.items():
            known[name] = wheel_of(folder, name)
            wanted += applying(needs_of(known[name]), asked, environment)
    return list(known.values())


def applying(needs: Iterable[str], extras: set[str], environment: dict[str, str]) -> Iterator[Requirement]:
    """Those that count on the other machine, for these extras."""
    for need in map(Requirement, needs):
        places = [environment | {"extra": extra} for extra in ("", *extras)]
        if need.marker is None or any(map(need.marker.evaluate, places)):
            yield need


def fetch(version: str, folder: Path, requirements: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", version, "--implementation", "cp", "--dest", str(folder)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, *requirements], check=True)


def wheel_of(folder: Path, name: str) -> Path:
    """The newest wheel there of a distribution."""
    found = [wheel for wheel in folder.glob("*.whl") if canonicalize_name(wheel.name.split("-")[0]) == name]
    return max(found, key=lambda wheel: wheel.stat().st_mtime)


def needs_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as content:
        metadata = next(name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        lines = content.read(metadata).decode().splitlines()
    return [line.removeprefix("Requires-Dist:").strip() for line in lines if line.startswith("Requires-Dist:")]


def pack(wheels: Iterable[Path], archive: Path) -> dict[str, int]:
    """Write the archive; bytes of each distribution that went into it."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}]
    sizes: dict[str, int] = {}
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_suffix(".partial")
    with lzma.open(partial, "w", filters=filters) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in STAND_INS.items():
            tar.addfile(described(name, data), io.BytesIO(data))
        for wheel in wheels:
            for name, data in content_of(wheel):
                tar.addfile(described(name, data), io.BytesIO(data))
                distribution = wheel.name.split("-")[0]
                sizes[distribution] = sizes.get(distribution, 0) + len(data)
    partial.replace(archive)
    return sizes


def described(name: str, data: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o755 if ".so" in name else 0o644
    return info


def content_of(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of what is packed of a wheel."""
    with zipfile.ZipFile(wheel) as content:
        for name in sorted(content.namelist()):
            if name.endswith("/") or any(fnmatch.fnmatch(name, pattern) for pattern in TRIMMED):
                continue
            data = content.read(name)
            yield name, stripped(data) if fnmatch.fnmatch(name, STRIPPED) else data


def stripped(library: bytes) -> bytes:
    """A shared library without debug information, where binutils are there."""
    if shutil.which("strip") is None:
        return library
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(library)
        subprocess.run(["strip", "--strip-debug", file.name], check=True)
        return Path(file.name).read_bytes()


if __name__ == "__main__":
    main()
