"""A real browser on a page: what Chromium lays out at a width and in a theme, asked for by its own protocol."""

import asyncio
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import websocket_connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

LAID_OUT = """(() => {
  const style = getComputedStyle(document.body), root = document.documentElement;
  return JSON.stringify({
    width: root.scrollWidth, paper: style.backgroundColor, ink: style.color,
    broken: [...document.images].filter(one => !one.naturalWidth).length, images: document.images.length,
  });
})()"""


@contextmanager
def browser(profile: Path) -> Iterator[int]:
    """A headless Chromium with a new profile; gives the port that it listens at."""
    words = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    with subprocess.Popen([*words, f"--user-data-dir={profile}"], stderr=subprocess.DEVNULL) as process:
        try:
            file, ends = profile / "DevToolsActivePort", time.monotonic() + 60
            while not (file.exists() and file.read_text().count("\n")):
                assert time.monotonic() < ends and process.poll() is None, "Chromium did not start"
                time.sleep(0.05)
            yield int(file.read_text().splitlines()[0])
        finally:
            process.terminate()


def laid_out(port: int, page: Path, *, width: int, dark: bool) -> dict[str, Any]:
    """What the browser makes of a page: the width it needs in px, colours of paper and ink, pictures, broken ones."""
    made = urllib.request.Request(f"http://127.0.0.1:{port}/json/new", method="PUT")
    with urllib.request.urlopen(made, timeout=30) as answer:
        address = json.load(answer)["webSocketDebuggerUrl"]
    return asyncio.run(_laid_out(address, page, width, dark))


async def _laid_out(address: str, page: Path, width: int, dark: bool) -> dict[str, Any]:
    connection = await websocket_connect(address, max_message_size=1 << 26)

    async def ask(number: int, method: str, **params: Any) -> dict[str, Any]:
        await connection.write_message(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(await connection.read_message() or "{}")
            if answer.get("id") == number:
                return answer["result"]

    media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    await ask(1, "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    await ask(2, "Emulation.setEmulatedMedia", features=media)
    await ask(3, "Page.enable")
    await connection.write_message(json.dumps({"id": 4, "method": "Page.navigate", "params": {"url": page.as_uri()}}))
    while json.loads(await connection.read_message() or "{}").get("method") != "Page.loadEventFired":
        pass
    found = await ask(5, "Runtime.evaluate", expression=LAID_OUT)
    connection.close()
    return json.loads(found["result"]["value"])
