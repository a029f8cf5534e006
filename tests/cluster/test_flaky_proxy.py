"""The proxy does to requests what it says: tests that rest on it are worth no more than it is."""

import urllib.error
import urllib.request

import pytest

from .flaky_proxy import Fault, FlakyProxy, every, randomly
from .s3 import Bucket

pytestmark = pytest.mark.cluster
BODY = b"x" * 300_000


def put(proxy: FlakyProxy, bucket: Bucket, key: str) -> int:
    headers = {"Content-Type": "application/octet-stream"}  # not a form's, which the server would take apart
    request = urllib.request.Request(f"{proxy.endpoint}/{bucket.name}/{key}", BODY, headers, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_nothing_happens_unasked(s3: Bucket, proxy: FlakyProxy) -> None:
    assert put(proxy, s3, "a") == 200
    assert s3.read("a") == BODY
    assert proxy.requests == {"PUT": 1} and not proxy.faults


def test_a_cut_request_leaves_nothing_and_a_cut_response_leaves_all(s3: Bucket, proxy: FlakyProxy) -> None:
    proxy.choose = every(1, Fault.CUT_REQUEST)
    with pytest.raises(OSError):
        put(proxy, s3, "a")
    assert s3.keys() == []
    proxy.choose = every(1, Fault.CUT_RESPONSE)
    with pytest.raises(OSError):
        put(proxy, s3, "a")
    assert s3.read("a") == BODY


def test_slow_down_does_not_reach_the_server(s3: Bucket, proxy: FlakyProxy) -> None:
    proxy.choose = every(2, Fault.SLOW_DOWN)
    assert [put(proxy, s3, key) for key in "abcd"] == [200, 503, 200, 503]
    assert s3.keys() == ["a", "c"]
    assert proxy.faults == {Fault.SLOW_DOWN: 2}


def test_an_outage_refuses_and_ends(s3: Bucket, proxy: FlakyProxy) -> None:
    with proxy.outage(), pytest.raises(urllib.error.URLError, match="refused"):
        put(proxy, s3, "a")
    assert put(proxy, s3, "a") == 200


def test_chance_repeats_itself() -> None:
    choose = randomly(0.2, Fault.STALL, Fault.SLOW_DOWN, seed=7)
    drawn = [choose("PUT", count) for count in range(1000)]
    assert drawn == [choose("PUT", count) for count in range(1000)]
    assert 150 < sum(fault is not None for fault in drawn) < 250
    assert choose("DELETE", 1) is None
