"""Commands for Redis have each distinct device once, as redis-py's own packer writes them."""

from __future__ import annotations

import hiredis
import pytest
import worker_native
from hypothesis import given
from hypothesis import strategies as st

from tests.native.comparison import strings

parts = st.lists(st.tuples(st.booleans(), st.lists(st.text(max_size=4), max_size=12)), max_size=6)


@given(st.text(max_size=9), parts, st.integers(1, 7))
def test_commands_add_the_distinct_devices_of_all_parts(
    key: str, parts: list[tuple[bool, list[str]]], elements: int
) -> None:
    given_parts = [strings(devices) if packed else devices for packed, devices in parts]
    distinct = list(dict.fromkeys(device for _, devices in parts for device in devices))
    assert worker_native.pfadd_commands(key.encode(), given_parts, elements) == [
        hiredis.pack_command(("PFADD", key, *distinct[start : start + elements]))  # type: ignore[arg-type]
        for start in range(0, len(distinct), elements)
    ]


@pytest.mark.parametrize("part", [b"\x01", b"\x01ab", b"\x02a", b"\x80", b"\xff" * 10 + b"\x01a"])
def test_parts_of_another_form_are_refused(part: bytes) -> None:
    with pytest.raises(ValueError, match="made of strings"):
        worker_native.pfadd_commands(b"key", [part], 5)
    with pytest.raises(ValueError, match="at least 1"):
        worker_native.pfadd_commands(b"key", [], 0)
