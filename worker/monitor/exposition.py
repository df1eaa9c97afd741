"""The text that Prometheus reads, one family of samples at a time.

https://prometheus.io/docs/instrumenting/exposition_formats/ is the whole format. prometheus_client would make an
object of each sample and check each name again at every scrape; here a sample is one formatted line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Values = tuple[str, ...]  # of a sample's labels, in the order of the family's

_ESCAPED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Kind(NamedTuple):
    """A metric's type, meaning and labels; its unit is in its name."""

    type: str
    help: str
    labels: tuple[str, ...] = ()


class Buckets(NamedTuple):
    """One histogram: upper bounds, how many observations each bucket has (the last is the rest), and their sum."""

    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float


def family(name: str, kind: Kind, samples: Mapping[Values, float]) -> str:
    """Return a counter's or gauge's lines."""
    return "".join([_head(name, kind), *_lines(name, kind.labels, samples.items())])


def histogram(name: str, kind: Kind, samples: Mapping[Values, Buckets]) -> str:
    """Return a histogram's lines."""
    lines = [_head(name, kind)]
    for values, buckets in samples.items():
        bounds = [*map(str, map(float, buckets.bounds)), "+Inf"]
        places = [(*values, bound) for bound in bounds]
        counts = list(accumulate(buckets.counts))
        lines += _lines(f"{name}_bucket", (*kind.labels, "le"), zip(places, counts, strict=True))
        lines += _lines(f"{name}_sum", kind.labels, [(values, buckets.sum)])
        lines += _lines(f"{name}_count", kind.labels, [(values, counts[-1])])
    return "".join(lines)


def _head(name: str, kind: Kind) -> str:
    return f"# HELP {name} {kind.help}\n# TYPE {name} {kind.type}\n"


def _lines(name: str, labels: tuple[str, ...], samples: Iterable[tuple[Values, float]]) -> Iterator[str]:
    return (f"{name}{_braced(labels, values)} {value}\n" for values, value in samples)


@lru_cache(maxsize=8192)  # the same at every scrape: some partitions and slots, and the bounds of buckets
def _braced(labels: tuple[str, ...], values: Values) -> str:
    pairs = [f'{label}="{value.translate(_ESCAPED)}"' for label, value in zip(labels, values, strict=True)]
    return f"{{{','.join(pairs)}}}" if pairs else ""
