"""Dask's dashboard, where it is asked for: a page on the loopback, and on no other address."""

import re
from urllib.request import urlopen

import psutil
import pytest
from physseg.pipeline.run.executors.choose import choose_executor

pytest.importorskip("bokeh")
pytestmark = pytest.mark.cluster


def test_the_dashboard_is_a_page_of_this_machine(capfd: pytest.CaptureFixture[str]) -> None:
    with choose_executor("local", workers=1, dashboard=True).connected():  # type: ignore[attr-defined]
        found = re.fullmatch(r"dashboard: (http://127\.0\.0\.1:(\d+)/status)\n", capfd.readouterr().err)
        assert found, "the address, and no word of Dask's"
        with urlopen(found[1], timeout=30) as page:
            text = page.read().decode()
        assert "Task Stream" in text, "what bokeh draws, not the page that says it is missing"
        listening = {each.laddr for each in psutil.Process().net_connections() if each.status == psutil.CONN_LISTEN}
        assert {address.ip for address in listening if address.port == int(found[2])} == {"127.0.0.1"}
