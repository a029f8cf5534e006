"""Entry points of other packages: found without an import, and named where they cannot be given."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from physseg.common import plugins
from physseg.common.plugins import PluginError

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution on the path: its metadata, and a module of the given source."""

    def install(package: str, entries: str, source: str = "thing = 1") -> None:
        info = tmp_path / f"{package.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[physseg.extractors]\n{entries}\n")
        (tmp_path / f"{package.replace('-', '_')}.py").write_text(source)
        plugins.offers.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    plugins.offers.cache_clear()


def test_offers_are_found_and_nothing_is_imported(install: Install) -> None:
    install("far-away", "far = far_away:thing", source="raise SystemExit('imported')")
    offer = plugins.find("extractors", "far")
    assert (offer.package, offer.version, offer.entry.value) == ("far-away", "1.5", "far_away:thing")
    assert plugins.names("extractors")[0] in {"canny", "mask_edges"}
    assert "far_away" not in sys.modules


def test_an_offer_is_loaded(install: Install) -> None:
    install("near-by", "near = near_by:thing", source="thing = 41 + 1")
    assert plugins.find("extractors", "near").load() == 42


def test_what_does_not_import_names_its_package(install: Install) -> None:
    install("broken-one", "broken = broken_one:thing", source="import no_such_library")
    with pytest.raises(PluginError, match=r"broken-one 1\.5: broken_one:thing does not import: ModuleNotFoundError"):
        plugins.find("extractors", "broken").load()


def test_a_name_of_two_packages_is_nobodys(install: Install) -> None:
    install("one-of", "twice = one_of:thing")
    install("two-of", "twice = two_of:thing")
    with pytest.raises(PluginError, match="several packages: one-of, two-of"):
        plugins.find("extractors", "twice")


def test_our_names_are_ours(install: Install) -> None:
    install("thief-of", "canny = thief_of:thing")
    assert plugins.find("extractors", "canny").package == "physseg"


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(PluginError, match="unknown structure extractor 'kanny'") as caught:
        plugins.find("extractors", "kanny")
    assert "physseg plugins" in str(caught.value)
