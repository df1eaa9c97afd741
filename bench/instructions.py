"""`python -m bench.instructions`: instructions per message of the whole reader, beside those of the floor in C.

Each contender reads two topics to their end under valgrind's callgrind, from a real Kafka into real stores, and what
arrived is checked. The figure is the difference of the two runs, divided by that of their events: start-up, joining the
group and leaving it are not included. Of the worker it is that of the consumer process: the supervisor and the monitor
work by the clock, and under valgrind a message takes fifty times as long. For the same reason `--linger-ms` is 20 s
here: batches get their full size, as they do at full speed. Needs valgrind; takes four minutes.
"""

from __future__ import annotations

import argparse
import compileall
import sys
import tempfile
import uuid
from collections import Counter
from pathlib import Path

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

from bench import callgrind, contenders, measure, rounds, services, verify
from bench.contenders import Contender, Job
from bench.services import Dataset, Services
from worker.core.errors import Fatal
from worker.local.process import free_port

LIMIT = 2.0  # × the floor in C
_SMALL, _PARTITIONS = 20_000, 4
_BY_ROWS = ("--linger-ms", "20000")
_TIMEOUT_S = 1800.0
_UNPACK = "rd_kafka_msgset_reader_msg_v2"  # librdkafka's: only a process that reads messages calls it


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    field = _field(options)
    try:
        with services.running() as running, tempfile.TemporaryDirectory() as temporary:
            directory = options.keep or Path(temporary)
            sizes = (_SMALL, _SMALL + options.events)
            topics = [running.dataset(size, 10_000, _PARTITIONS) for size in sizes]
            floor = 0.0
            print(f"{'instructions per message':46} {'':>8} × C floor", flush=True)
            for contender in field:
                profiles = [_profile(running, contender, topic, directory) for topic in topics]
                small, large = map(callgrind.instructions, profiles)
                figure = (large - small) / options.events
                floor = floor or figure
                print(f"{contender.key:46} {figure:8.0f} {figure / floor:9.2f}", flush=True)
                if options.top:
                    _print_functions(profiles, options.events, options.top)
    except Fatal as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


def _field(options: argparse.Namespace) -> list[Contender]:
    """Return the floor in C first, and the worker with each store."""
    floor = contenders.c_floor()
    if floor is None:
        raise SystemExit("the floor in C needs cc and librdkafka's headers: apt-get install gcc librdkafka-dev")
    reader = ("--reader", options.reader)
    field = [contenders.ours(1, store, (*_BY_ROWS, *reader)) for store in ("redis", "clickhouse")]
    for text in options.variant:
        field += contenders.variants(f"{text} {' '.join(_BY_ROWS)}")
    if options.only:
        field = [contender for contender in field if any(word in contender.key for word in options.only)]
    return [floor, *field]


def _profile(running: Services, contender: Contender, data: Dataset, directory: Path) -> Path:
    """Read the topic under callgrind; return the profile of the reader."""
    name = f"instructions_{uuid.uuid4().hex[:8]}"
    rounds.progress(f"{contender.key}: {data.events} events, profiles in {directory / name}")
    compileall.compile_dir(contender.cwd / "worker", quiet=1)  # so that no run compiles what the other one finds
    job = Job(running, data, group=name, target=name, metrics_port=free_port())
    (directory / name).mkdir(parents=True)
    verify.prepare(contender, job)
    try:
        run = measure.run(
            [*callgrind.command(directory / name), *contender.command(job)],
            servers={},
            env=callgrind.ENVIRONMENT,
            cwd=contender.cwd,
            timeout=_TIMEOUT_S,
        )
        if problem := verify.problem(contender, job, run):
            raise SystemExit(f"{contender.key}: {problem}")
    finally:
        verify.remove(contender, job)
    profiles = callgrind.profiles(directory / name)
    readers = [profile for profile in profiles if callgrind.calls(profile, _UNPACK)]
    if len(readers) != 1 or run.errors:  # a consumer that was killed wrote no profile
        raise SystemExit(f"{contender.key}: {len(readers)} processes read messages, not 1; run it again:\n{run.errors}")
    return readers[0]


def _print_functions(profiles: list[Path], events: int, count: int) -> None:
    """Print the functions with the most instructions per message of their own."""
    small, large = map(callgrind.functions, profiles)
    large.subtract(small)
    for name, instructions in Counter(large).most_common(count):
        print(f"{instructions / events:10.1f}  {name}")


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.instructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--events", type=int, default=400_000, help="how many more the large topic has [%(default)s]")
    parser.add_argument("--reader", choices=("native", "python"), default="native", help="[%(default)s]")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="contenders whose name has this")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME=[@DIR] ARGUMENTS",
        help="the worker with further arguments, or of another checkout",
    )  # fmt: skip
    parser.add_argument("--top", type=int, default=0, metavar="N", help="functions to print for each contender")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the profiles, for callgrind_annotate")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
