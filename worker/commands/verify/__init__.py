"""The `verify` command: does the store have every event of the topic once? Reads only; safe beside a running worker.

It reads the group's commits first, then the store, then the log. So events that are written meanwhile are neither
reported as missing nor as extra.
"""

from __future__ import annotations

from array import array
from contextlib import closing
from typing import TextIO

from worker.commands.dlq.dead_letters import read_dead_letters
from worker.commands.progress import ProgressBar
from worker.commands.verify.clickhouse import verify_clickhouse
from worker.commands.verify.redis import verify_redis
from worker.commands.verify.rows import Rows
from worker.commands.verify.skipped import skipped_by, tombstones
from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal
from worker.decoding.formats import open_decoder, with_schemas
from worker.kafka.log_reader import LogReader
from worker.kafka.schemas import schema_source


def verify(settings: Settings, *, limit: int, allow_merged: bool, out: TextIO, progress: TextIO | None = None) -> int:
    """Print an account of each partition and a total; return OK if every event is stored once, else FAILED.

    It is FAILED too if that cannot be decided: a table that merges, removes or forwards rows may have done so with the
    row of an event, or it may never have had it. With `allow_merged`, such events count as stored. `limit` is how many
    ranges of each problem are shown.
    `progress` shows a progress bar if it is a terminal. Raises Fatal if the store cannot be compared.
    With both stores, each is compared by itself.
    """
    worst: int = ExitCode.OK
    for backend in settings.backends:
        if len(settings.backends) > 1:
            print(f"== {backend}", file=out, flush=True)
        worst = max(worst, _verify(settings, backend, limit, allow_merged, out, progress))
    return worst


def _verify(
    settings: Settings, backend: str, limit: int, allow_merged: bool, out: TextIO, progress: TextIO | None
) -> int:
    decode = with_schemas(open_decoder(settings.format, schema_source(settings), settings.transform))
    find_skipped = skipped_by(decode) if settings.transform else tombstones
    with closing(LogReader(settings, settings.topic)) as log_reader, ProgressBar(progress) as bar:
        count = log_reader.existing_partitions()
        begins = _begins(settings, backend, log_reader, count)
        ends = {} if settings.until_ms is None else log_reader.offsets_at(count, settings.until_ms)
        accounted = log_reader.accounted(count)
        dead_letters = _dead_letter_offsets(settings)
        if bar.is_shown:
            bar.total = sum(high - low for low, high in map(log_reader.bounds, range(count)))
        if backend == "redis":
            return verify_redis(
                settings, log_reader, decode, begins or {}, ends, accounted, dead_letters, limit, out, bar
            )
        with closing(Rows(settings)) as rows:
            return verify_clickhouse(
                log_reader, begins, ends, accounted, dead_letters, rows, find_skipped, limit, allow_merged, out, bar
            )


def _begins(settings: Settings, backend: str, log_reader: LogReader, count: int) -> dict[int, int] | None:
    """Return the offset of each partition where the group began, as far as it did not begin with the log.

    None for `--start latest`: only the rows tell where that was.
    """
    if settings.start_ms is not None:
        return log_reader.offsets_at(count, settings.start_ms)
    if settings.start == "earliest":
        return {}
    if backend == "redis":
        raise Fatal(
            "--start latest: nothing tells where the group began, because devices have no offsets; give the "
            "time at which the worker was first started instead, such as --start 2026-11-01T05:30Z"
        )
    return None


def _dead_letter_offsets(settings: Settings) -> dict[int, array[int]]:
    """Return the offsets of events that have dead letters, by partition, ascending and distinct."""
    by_partition: dict[int, array[int]] = {}
    for dead_letter in read_dead_letters(settings):
        if dead_letter.concerns(settings):
            by_partition.setdefault(dead_letter.partition, array("q")).append(dead_letter.offset)
    return {partition: array("q", sorted(set(offsets))) for partition, offsets in by_partition.items()}
