"""Passwords and signatures in URLs: refused where a URL comes in, masked in whatever is printed or stored."""

import re

_SECRETS = re.compile(
    r"(?P<user>\b[a-z][\w+.-]*://(?=[^\s/@:]*:(?!\d+/)[^\s@]*@))[^\s@]*(?=@)"  # not https://host:8080/a@b
    r"|(?P<token>\b(?:https?|s3a?|gs)://)[^\s/@:]+(?=@)"  # https://TOKEN@host; az://container@account has no secret
    r"|(?P<key>[?&](?:x-(?:amz|goog)-[\w-]+|awsaccesskeyid|sig|signature|(?:access_)?token|password)=)[^&#\s]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """A text with *** in the place of every secret in its URLs.

    >>> masked("s3://KEY:SEC/RET@bucket/a: no such file"), masked("https://host/a?X-Amz-Signature=0f&v=2")
    ('s3://***@bucket/a: no such file', 'https://host/a?X-Amz-Signature=***&v=2')
    """
    return _SECRETS.sub(lambda found: f"{found['user'] or found['token'] or found['key']}***", text)


def has_credentials(url: str) -> bool:
    """Whether something in a URL is to be masked."""
    return masked(url) != url
