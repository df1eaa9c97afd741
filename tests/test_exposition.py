from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from worker.monitor.exposition import Buckets, Kind, family, histogram

GAUGE = Kind("gauge", "What it means", ("topic", "slot"))


@given(st.dictionaries(st.tuples(st.text(), st.text()), st.floats() | st.integers(-(2**53), 2**53)))
def test_any_label_and_any_value_is_read_back(samples: dict[tuple[str, ...], float]) -> None:
    (found,) = text_string_to_metric_families(family("worker_x", GAUGE, samples))
    assert (found.name, found.type, found.documentation) == ("worker_x", "gauge", "What it means")
    read: dict[tuple[str, ...], float] = {
        (sample.labels["topic"], sample.labels["slot"]): sample.value for sample in found.samples
    }
    assert read.keys() == samples.keys()
    assert all(read[key] == value or (math.isnan(value) and math.isnan(read[key])) for key, value in samples.items())


def test_a_family_without_samples_still_says_what_it_is() -> None:
    assert family("worker_x", GAUGE, {}) == "# HELP worker_x What it means\n# TYPE worker_x gauge\n"


def test_buckets_are_cumulative_and_the_last_one_has_all() -> None:
    kind = Kind("histogram", "Time", ("stage",))
    text = histogram("worker_x_seconds", kind, {("poll",): Buckets((0.5, 10), (3, 0, 1), 22.5)})
    assert text.splitlines()[2:] == [
        'worker_x_seconds_bucket{stage="poll",le="0.5"} 3',
        'worker_x_seconds_bucket{stage="poll",le="10.0"} 3',
        'worker_x_seconds_bucket{stage="poll",le="+Inf"} 4',
        'worker_x_seconds_sum{stage="poll"} 22.5',
        'worker_x_seconds_count{stage="poll"} 4',
    ]
