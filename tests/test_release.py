"""What is released: versions that fit the requirements, and metadata that lead somewhere."""

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "docs" / "release.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_constraints_have_every_requirement_in_a_version_that_fits() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {
        canonicalize_name(name): version for name, version in (line.split("==") for line in lines if "==" in line)
    }
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = [
        *PYPROJECT["project"]["dependencies"],
        *(each for name in ("s3", "slurm", "docs", "dev") for each in extras[name]),
    ]
    for requirement in map(Requirement, wanted):
        if requirement.name != "physseg":
            version = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement}, pinned {version}"


def test_links_of_a_released_readme_are_absolute_and_lead_to_what_is_there(release: ModuleType) -> None:
    url = "https://host/owner/physseg"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    released = release.with_absolute_links(readme, url)
    links = re.findall(r"\]\(([^)\s]+)\)", released)
    assert len(links) == len(re.findall(r"\]\(([^)\s]+)\)", readme)) > 20
    assert all(link.startswith("https://") for link in links)
    assert f"]({url}/raw/HEAD/docs/overview.png)" in released
    assert f"]({url}/blob/HEAD/docs/training.md#a-gpu-in-five-minutes)" in released


def test_a_released_pyproject_names_the_repository(release: ModuleType) -> None:
    released = release.with_addresses(
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"), "https://host/owner/physseg"
    )
    document = tomllib.loads(released)
    urls = document["project"].pop("urls")
    assert urls["Repository"] == "https://host/owner/physseg"
    assert urls | PYPROJECT["project"]["urls"] == urls
    assert document["project"] == {key: value for key, value in PYPROJECT["project"].items() if key != "urls"}


def test_the_citation_has_the_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PYPROJECT['project']['version']}\n" in citation
