"""Whether the optional package `worker_native` can be used, and if not, why."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from worker.core.errors import Fatal
from worker.core.version import version_text

# The native reader relies on the layout of confluent-kafka's Consumer: tests have run with these minor versions.
TESTED_CONFLUENT_KAFKA = ("2.13", "2.14", "2.16")


class Native(NamedTuple):
    """The native package as far as it can be used."""

    library: str  # path of confluent-kafka's own librdkafka
    reason: str = ""  # why it cannot be used; empty if it can

    @property
    def is_usable(self) -> bool:
        return not self.reason


@cache
def native() -> Native:
    """Look for the native package and what it needs."""
    if find_spec("worker_native") is None:
        return Native("", "the package kafka-ingest-worker-native is not installed")
    import worker_native

    own, installed = version_text(), str(worker_native.__version__)
    if installed != own:
        return Native("", f"kafka-ingest-worker-native is version {installed}, the worker {own}")
    try:
        client = version("confluent-kafka")
    except PackageNotFoundError:
        return Native("", "confluent-kafka is not installed as a package")
    if client.rpartition(".")[0] not in TESTED_CONFLUENT_KAFKA:
        tested = ", ".join(TESTED_CONFLUENT_KAFKA)
        return Native("", f"confluent-kafka {client} was not tested with it (tested: {tested})")
    if not (library := _librdkafka()):
        return Native("", "confluent-kafka has no librdkafka of its own: it was not installed from a wheel")
    return Native(library)


def reader_in_use(option: str) -> str:
    """Return the reader that `--reader` chooses, `native` or `python`.

    Raises Fatal where the native one is asked for and cannot be used.
    """
    package = native()
    if option == "native" and not package.is_usable:
        raise Fatal(f"--reader native cannot be used: {package.reason}; --reader auto uses it where it can be")
    return "native" if option != "python" and package.is_usable else "python"


def describe_reader(option: str) -> str:
    """Return the reader for messages, with the reason where the native one was not chosen."""
    name = reader_in_use(option)
    return name if name == "native" or option == "python" else f"python ({native().reason})"


def _librdkafka() -> str:
    """Return the path of the librdkafka that confluent-kafka's wheel carries; empty if there is none."""
    for directory in map(Path, sys.path):
        for library in sorted(directory.glob("confluent_kafka.libs/librdkafka*.so*")):
            if "++" not in library.name:
                return str(library)
    return ""
