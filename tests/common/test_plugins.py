"""Entry points of other packages: found without an import, and named where they cannot be given."""

import json
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import physseg
import pytest
from physseg.cli import app
from physseg.common import plugins
from physseg.common.errors import StorageError
from physseg.common.plugins import PluginError
from typer.testing import CliRunner

PYPROJECT = Path(physseg.__file__).parent / "pyproject.toml"
Install = Callable[..., None]


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


def problem(name: str, limit_s: float = 60.0) -> str:
    (offer,) = (offer for offer in plugins.offers("extractors") if offer.name == name and offer.package != "physseg")
    return offer.problem(limit_s)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("thing = 1", ""),
        ("", "does not load: AttributeError: module 'asked_for_0' has no attribute 'thing'"),
        ("import no_such_library", "does not load: ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise SystemExit", "does not load: SystemExit"),
        ("raise KeyboardInterrupt", "does not load: KeyboardInterrupt"),
        ("raise ValueError('two\\nlines')", "does not load: ValueError: two lines"),
    ],
)
def test_what_an_import_raises_is_told_in_a_line(source: str, told: str, install: Install) -> None:
    install("asked_for_0", "asked = asked_for_0:thing", source=source)
    assert problem("asked") == told


def test_a_slow_import_ends_even_where_it_catches_exceptions(install: Install) -> None:
    source = "import time\ntry:\n    time.sleep(60)\nexcept Exception:\n    time.sleep(60)\nthing = 1\n"
    install("slow-one", "slow = slow_one:thing", source=source)
    begun = time.monotonic()
    assert problem("slow", limit_s=0.2) == "does not load: ImportTimeout: still importing after 0.2 s"
    assert time.monotonic() - begun < 10
    time.sleep(0.3)  # nothing rings later


def test_a_taken_name_is_said_and_not_imported(install: Install) -> None:
    for package in ("first-of", "second-of", "thief-two"):
        entry = "canny" if package == "thief-two" else "both"
        install(package, f"{entry} = {package.replace('-', '_')}:thing", source="raise SystemExit('imported')")
    assert problem("canny") == "not used: canny is physseg's own"
    both = [offer.problem() for offer in plugins.offers("extractors") if offer.name == "both"]
    assert both == ["not used: also offered by second-of", "not used: also offered by first-of"]
    assert plugins.find("extractors", "canny").problem() == ""


def test_what_an_import_prints_is_not_output(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("loud-one", "loud = loud_one:thing", source="print('hello')\nthing = 1")
    assert problem("loud") == ""
    assert capsys.readouterr() == ("", "hello\n")


def test_what_fails_inside_another_package_names_it(install: Install) -> None:
    install("fails-once", "fails = fails_once:thing")
    offer = plugins.find("extractors", "fails")
    named = r"^structure extractor fails of the package fails-once 1\.5: KeyError: 'a'"
    with pytest.raises(PluginError, match=named), offer.blamed():
        _ = {}["a"]
    with pytest.raises(PluginError, match="SystemExit"), offer.blamed():
        sys.exit(3)
    with pytest.raises(StorageError, match=r"^no such bucket$"), offer.blamed():  # a line for people already
        raise StorageError("no such bucket")
    with pytest.raises(KeyError), plugins.find("extractors", "canny").blamed():
        _ = {}["a"]


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["plugins", *arguments])
    return done.exit_code, done.stdout


def test_the_table_of_all_parts(install: Install) -> None:
    code, table = run()
    assert code == 0, table
    rows = json.loads(run("--json", "-")[1])
    assert all(row["package"] == "physseg" and row["problem"] == "" for row in rows)
    by_pyproject = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]
    assert {(f"physseg.{row['kind']}", row["name"]): row["target"] for row in rows} == {
        (group, name): target for group, entries in by_pyproject.items() for name, target in entries.items()
    }
    install("torn-off", "torn = torn_off:thing", source="raise SystemExit(0)")
    install("well-made", "well = well_made:thing")
    code, table = run()
    assert code == 1
    lines = table.splitlines()
    told = "extractors torn torn-off 1.5 torn_off:thing does not load: SystemExit: 0"
    assert told in [" ".join(line.split()) for line in lines]
    assert len(lines) == 1 + len(rows) + 2
    assert [row["problem"] for row in json.loads(run("--json", "-")[1]) if row["package"] == "well-made"] == [""]
