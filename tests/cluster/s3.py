"""An S3 server on loopback for tests (moto's, which keeps everything in memory), and a view of its buckets.

The view is boto3's: what tests find in a bucket or change there does not pass through the product's own client.
"""

import contextlib
import functools
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket of a server; the credentials are whatever the server takes."""

    name: str
    endpoint: str
    key_id: str = "testing"
    secret: str = "testing"

    def create(self) -> None:
        self._client().create_bucket(Bucket=self.name)

    def environment(self, endpoint: str = "") -> dict[str, str]:
        """What S3 clients read from their environment; another endpoint leads through a proxy."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": self.key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",  # boto3's word for it
            "AWS_EC2_METADATA_DISABLED": "true",  # no search for a cloud's credentials
        }

    def url(self, *parts: str) -> str:
        return "/".join((f"s3://{self.name}", *parts))

    def keys(self, prefix: str = "") -> list[str]:
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def read(self, key: str) -> bytes:
        return bytes(self._client().get_object(Bucket=self.name, Key=key)["Body"].read())

    def write(self, key: str, data: bytes) -> None:
        self._client().put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, key: str) -> None:
        self._client().delete_object(Bucket=self.name, Key=key)

    def upload(self, folder: Path, prefix: str) -> None:
        """Every file below a folder as an object below a prefix."""
        client = self._client()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder).as_posix()}"
                client.put_object(Bucket=self.name, Key=key, Body=path.read_bytes())

    def tree(self, prefix: str) -> dict[str, bytes]:
        """The objects below a prefix, as ``commands.tree`` gives a folder's files."""
        client = self._client()
        return {
            key.removeprefix(prefix + "/"): bytes(client.get_object(Bucket=self.name, Key=key)["Body"].read())
            for key in self.keys(prefix + "/")
        }

    def _client(self) -> Any:
        return _client(self.endpoint, self.key_id, self.secret)


@functools.cache  # boto3 takes longer to make one than to ask a question
def _client(endpoint: str, key_id: str, secret: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run the server, its log in ``folder``; yields the endpoint's URL. RuntimeError where it does not come up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    call = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "moto.log").open("wb") as log:
        server = subprocess.Popen(call, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        _await(server, endpoint, folder / "moto.log")
        yield endpoint
    finally:
        server.kill()
        server.wait()


def _await(server: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError(f"moto's server did not start:\n{log.read_text(errors='replace')[-1000:]}")
