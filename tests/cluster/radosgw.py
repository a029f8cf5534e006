"""Ceph's object gateway with a storage cluster of one monitor and one disk in memory, on loopback, in one folder.

    with radosgw.serving(folder) as gateway:
        gateway.bucket.create()
        ...
        gateway.restart()

Needs Debian's packages radosgw, ceph-mon, ceph-osd and ceph-common (tested with 16.2). An S3 service that is not made
for tests: it checks signatures, has its own opinion of half-sent requests, and keeps objects in pieces.
"""

import contextlib
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .s3 import Bucket

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
START_SECONDS = 60
EVERYTHING = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
KEY_ID, SECRET = "testing", "testing-secret"

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv4 = true
ms bind ipv6 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
# One copy of everything, on one disk that is memory.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
mon allow pool size one = true
mon max pg per osd = 1000
run dir = {folder}
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
keyring = {folder}/keyring
rgw frontends = beast endpoint=127.0.0.1:{gateway_port}
"""


@dataclass(slots=True)
class Gateway:
    """The running gateway: the only part that clients see, and that can be killed."""

    bucket: Bucket
    """Not created yet."""
    start: Callable[[], "subprocess.Popen[bytes]"]
    process: "subprocess.Popen[bytes]"

    def restart(self) -> None:
        """Kill it in the middle of whatever it does, and start it again."""
        self.process.kill()
        self.process.wait()
        self.process = self.start()


def missing() -> str:
    """Why it cannot be started here; empty if nothing is in the way."""
    names = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(names)} (apt-get install radosgw ceph-mon ceph-osd ceph-common)" if names else ""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Gateway]:
    """Run all of it, which takes a quarter of a minute. Raises RuntimeError where it does not come up."""
    (port, gateway_port), fsid = _free_ports(2), str(uuid.uuid4())
    configuration = folder / "ceph.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, fsid=fsid, port=port, gateway_port=gateway_port))
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()

    def call(program: str, *words: str) -> str:
        done = subprocess.run(
            [program, "--conf", str(configuration), *words], capture_output=True, text=True, timeout=30, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    with contextlib.ExitStack() as stack:

        def daemon(program: str, *words: str) -> "subprocess.Popen[bytes]":
            with (folder / f"{program}.output").open("ab") as output:
                process = subprocess.Popen(
                    [program, "--conf", str(configuration), "-f", *words], stdout=output, stderr=output
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        def start_gateway() -> "subprocess.Popen[bytes]":
            process = daemon("radosgw", "--name", "client.rgw")
            _await("the gateway", lambda: _answers(gateway_port))
            return process

        monitor_map, keyring, disk = str(folder / "monmap"), str(folder / "keyring"), str(uuid.uuid4())
        for name in ("mon.", "client.admin", "osd.0", "client.rgw"):
            create = () if Path(keyring).exists() else ("--create-keyring",)
            call("ceph-authtool", keyring, *create, "--name", name, "--gen-key", *EVERYTHING)
        call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{port}]", monitor_map)
        call("ceph-mon", "--id", "a", "--mkfs", "--monmap", monitor_map, "--keyring", keyring)
        daemon("ceph-mon", "--id", "a")
        _await("the monitor", lambda: call("ceph", "--connect-timeout", "3", "mon", "stat"))
        call("ceph", "osd", "new", disk)
        call("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", disk)
        daemon("ceph-osd", "--id", "0")
        _await("the disk", lambda: "1 up" in call("ceph", "osd", "stat"))
        process = start_gateway()
        user = ("user", "create", "--uid=test", "--display-name=test")
        call("radosgw-admin", *user, f"--access-key={KEY_ID}", f"--secret-key={SECRET}")
        yield Gateway(Bucket("physseg", f"http://127.0.0.1:{gateway_port}", KEY_ID, SECRET), start_gateway, process)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _await(what: str, is_there: Callable[[], object]) -> None:
    deadline = time.monotonic() + START_SECONDS
    error: object = ""
    while time.monotonic() < deadline:
        try:
            if is_there():
                return
        except (RuntimeError, subprocess.TimeoutExpired) as failed:
            error = failed
        time.sleep(0.2)
    raise RuntimeError(f"{what} did not come up in {START_SECONDS} s: {error}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
