"""Redaction of options and properties: secrets, and passwords inside URLs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field
from typing import Any

_MASK = "***"
_SECRET_PROPERTY = re.compile(r"password|passphrase|secret|\.pem$|jaas|oauthbearer\.config$")


def redact_url(url: str) -> str:
    """Mask everything in a URL that may be a password, even one with `/` or `#` in it."""
    head, at, rest = url.rpartition("@")
    if at and not re.fullmatch(r"[\w+]+://[^:@/?#]*", head):
        user = re.match(r"[\w+]+://[^:@/?#\[]*(?=:)", head)
        url = f"{user[0]}:{_MASK}@{rest}" if user else f"{_MASK}@{rest}"
    return re.sub(r"(?i)([?&](?!ssl_keyfile=)[^=&]*(?:pass|secret|token|key)[^=&]*=)[^&]*", rf"\1{_MASK}", url)


def is_secret_property(key: str) -> bool:
    """Whether a librdkafka property is a secret or may contain one."""
    return bool(_SECRET_PROPERTY.search(key))


def redact_option(item: Field[Any], value: Any) -> Any:
    """Return the value of an option (a field of Settings) without its secrets."""
    if item.metadata["secret"]:
        return _MASK if value else ""
    if item.name == "kafka" and isinstance(value, Mapping):
        return {key: _MASK if is_secret_property(key) else text for key, text in value.items()}
    return redact_url(value) if item.name.endswith("_url") else value
