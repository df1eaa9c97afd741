"""What must not be seen of options and properties: secrets, and passwords inside URLs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field
from typing import Any

_MASK = "***"
_SECRET_PROPERTY = re.compile(r"password|passphrase|secret|\.pem$|jaas|oauthbearer\.config$")


def without_password(url: str) -> str:
    """Mask whatever may be a password in a URL, also in one that a `/` or `#` in its password cuts short."""
    head, at, rest = url.rpartition("@")
    if at and not re.fullmatch(r"[\w+]+://[^:@/?#]*", head):
        user = re.match(r"[\w+]+://[^:@/?#\[]*(?=:)", head)
        url = f"{user[0]}:{_MASK}@{rest}" if user else f"{_MASK}@{rest}"
    return re.sub(r"(?i)([?&](?!ssl_keyfile=)[^=&]*(?:pass|secret|token|key)[^=&]*=)[^&]*", rf"\1{_MASK}", url)


def secret_property(key: str) -> bool:
    """Whether a property of librdkafka is a secret, or may have one in it."""
    return bool(_SECRET_PROPERTY.search(key))


def masked(item: Field[Any], value: Any) -> Any:
    """Return the value of an option (a field of Settings) as it may be seen."""
    if item.metadata["secret"]:
        return _MASK if value else ""
    if item.name == "kafka" and isinstance(value, Mapping):
        return {key: _MASK if secret_property(key) else text for key, text in value.items()}
    return without_password(value) if item.name.endswith("_url") else value
