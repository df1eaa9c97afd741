"""The shared counts of invalid events, as another process reads them."""

from __future__ import annotations

import os
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from worker.core.counters import Stats
from worker.core.rejects import MAX_ENTRIES, OTHER

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(
        st.tuples(st.sampled_from(["not_json", "wrong_type"]), names, st.integers(1, 5), st.integers(0, 9)), max_size=60
    )
)
def test_all_events_are_counted_and_the_last_origin_is_kept(calls: list[tuple[str, str, int, int]]) -> None:
    slot = Stats().slot(3)
    ledgers = [slot.ledger("events", "id", partition) for partition in range(10)]
    counts: Counter[tuple[str, str]] = Counter()
    last: dict[tuple[str, str], tuple[int, int]] = {}
    for offset, (reason, field, count, partition) in enumerate(calls):
        slot.add_rejects(ledgers[partition], reason, field, count, offset)
        full = (reason, field) not in counts and len(counts.keys() - {OTHER}) == MAX_ENTRIES - 1
        cause = OTHER if full else (reason, field)
        counts[cause] += count
        last[cause] = (partition, offset)
    shown = slot.rejects.read()
    assert {(row.reason, row.field): row.events for row in shown} == counts
    assert {(row.reason, row.field): (slot.ledger_at(row.ledger).partition, row.offset) for row in shown} == last
    assert sum(slot.get(f"rejected_{reason}") for reason in ("not_json", "wrong_type")) == counts.total()


def test_the_next_process_of_the_slot_continues_the_counts() -> None:
    stats = Stats()
    stats.slot(0).ledger("events", "id", 0)
    for offset in (1 << 40, 2**62):
        pid = os.fork()
        if pid == 0:
            slot = stats.slot(0)
            slot.add_rejects(slot.ledger("events", "id", 0), "wrong_type", "x" * 500, 2, offset)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        (row,) = stats.slot(0).rejects.read()
        assert row.offset == min(offset, 2**51 - 1)
    assert (row.events, row.ledger) == (4, 0)
    assert row.field == "x" * 117


def test_the_last_ledger_and_a_large_offset_fit_their_cell() -> None:
    table = Stats().slot(255).rejects
    table.add("not_json", "", 1, 4095, 2**51 - 1)
    (row,) = table.read()
    assert (row.ledger, row.offset) == (4095, 2**51 - 1)
