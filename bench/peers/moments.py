"""The five timestamp forms the obvious way, for contenders that leave that to their user."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def moment(value: Any) -> datetime:
    """Return an event's timestamp."""
    if isinstance(value, str) and not value.isdigit():
        found = datetime.fromisoformat(value)
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    number = int(value)
    return datetime.fromtimestamp(number / 1000 if number > 100_000_000_000 else number, UTC)
