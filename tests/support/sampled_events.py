"""Hypothesis strategies for events whose fields have types that can be inferred, and for such that have none."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.support.column_values import ipv4, ipv6, short, uuids

times = st.integers(0, 4 * 10**18).map(lambda n: n // 10 ** (n % 10)) | st.floats(0, 4e9)
iso = st.datetimes().map(lambda time: f"{time.isoformat()}Z")
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(0, 5),
    st.floats(allow_nan=False, allow_infinity=False),
    short,
    st.text(max_size=5),
    st.sampled_from(["\ud83d", 1e19, 2**70, "2024-01-01", "10.0.0.1"]),
    *(iso, times, times.map(str), uuids, ipv4, ipv6),
)
keys = st.sampled_from(["a", "b", "ts", "created_at", "A", "a.b", "", "_key", "`x`", "\\", "it's", "\n"]) | short
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))
# Fields that are alike in all events are the usual case; events of any kind hardly ever have two of them.
alike = st.sampled_from(["ts", "a", "n"]).flatmap(
    lambda key: st.sampled_from([iso, times, uuids, ipv4, ipv6, short, st.integers(0, 5), st.floats(0, 9)]).flatmap(
        lambda kind: st.lists(st.fixed_dictionaries({key: kind}), min_size=1, max_size=80)
    )
)
