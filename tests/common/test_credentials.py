"""No password, token or signature of a URL is printed or stored."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from physseg.common.errors import PhyssegError, StorageError
from physseg.common.storage.credentials import has_credentials, masked
from physseg.common.storage.location import absolute, open_storage, split
from physseg.manifests.manifest import Manifest
from physseg.train.weights.fetch import fetch, find_tag

WITH = [
    "s3://AKIA:SECRET@bucket/a.zarr",
    "s3://AKIA:SEC/R+ET@bucket/a.zarr",
    "https://user:SECRET@host:8080/data",
    "https://SECRET@host/data",
    "https://host/data?X-Amz-Credential=SECRET&X-Amz-Signature=SECRET",
    "https://account.blob/c/f?sv=2024&sig=SECRET",
]
WITHOUT = [
    "s3://bucket/a:b@2x/c.zarr",
    "https://host:8080/a@b/c",
    "abfs://container@account.dfs.core.windows.net/a",
    "file:///data/a@b:c",
    "tls://10.0.0.1:8786",
    "/data/user:name@host",
]


@pytest.mark.parametrize("url", WITH)
def test_secrets_are_refused_and_never_shown(url: str) -> None:
    assert has_credentials(url)
    assert "SEC" not in masked(f"before {url} after") and masked(f"before {url} after").endswith(" after")
    for take in (open_storage, split, absolute):
        with pytest.raises(StorageError, match="without credentials") as caught:
            take(url)
        assert "SEC" not in str(caught.value)
    assert "SEC" not in str(PhyssegError(f"{url}: no such file").prefixed(url))


@pytest.mark.parametrize("url", WITHOUT)
def test_other_urls_stay_as_they_are(url: str) -> None:
    assert not has_credentials(url) and masked(url) == url


def test_a_root_with_a_password_makes_no_manifest(make_manifest: Callable[..., Manifest]) -> None:
    with pytest.raises(StorageError, match="without credentials"):
        replace(make_manifest(1), root=WITH[0])


def test_a_mirror_with_a_password_is_refused() -> None:
    with pytest.raises(StorageError, match="without credentials"):
        fetch(find_tag("openai", "ViT-B-16"), url=WITH[2])
