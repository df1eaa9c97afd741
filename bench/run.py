"""`python -m bench.run`: drain one topic with each contender, check the store, and report the cost."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

from bench import binaries, contenders, report, rounds, services, venvs
from bench.contenders import FLOOR, Contender
from worker.core.errors import Fatal
from worker.core.native import reader_in_use


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    try:
        with services.running() as running:
            return _run(options, running)
    except Fatal as error:
        print(error, file=sys.stderr)
        return error.code


def _run(options: argparse.Namespace, running: services.Services) -> int:
    rounds.progress(f"writing {options.events} events to {running.kafka}")
    whole = running.dataset(options.events, options.devices, options.partitions)
    short = running.dataset(max(1, options.events // 10), options.devices, options.partitions)
    small = running.dataset(options.partitions * services.SMALL, options.devices, options.partitions)
    field = [(contender, short if contender.short else whole, small) for contender in _field(options)]
    results = rounds.play(running, field, options.rounds, rounds.progress)
    rounds.progress("")
    print(report.table(results))
    verdicts = report.verdicts(results, reader_in_use("auto"))
    for text in (report.notes(results), "\n".join(verdicts), report.failures(results)):
        if text:
            print(f"\n{text}")
    data = whole._asdict()
    del data["addresses"]
    about = {
        "versions": running.versions(),
        "reader": reader_in_use("auto"),
        "arguments": sys.argv[1:],
        "data": data,
    }
    print(f"\nwritten: {report.save(results, about)}")
    failed = any(result.failures for result in results if result.ours or result.key == FLOOR)
    return int(failed or (options.check and any(verdict.startswith("SLOW") for verdict in verdicts)))


def _field(options: argparse.Namespace) -> list[Contender]:
    """Return the contenders."""
    field = [contenders.floor(), *(contenders.ours(1, store) for store in ("redis", "clickhouse"))]
    if reader_in_use("auto") == "native":
        field += contenders.variants("python=--reader python")
    for text in options.variant:
        field += contenders.variants(text)
    if not (options.check or options.quick):
        c_floor = contenders.c_floor()
        field += [c_floor] if c_floor else []
        field += [contenders.ours(count, store) for count in (2, 4) for store in ("redis", "clickhouse")]
        field += contenders.in_clickhouse()
    if not options.check:
        field += contenders.obvious()
    if options.peers:
        field += venvs.peers()
    for text in options.peer_binary:
        field += binaries.peers(text)
    if options.only:
        field = [contender for contender in field if any(word in contender.key for word in options.only)]
    return field


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 000 events, few contenders, once: about a minute")
    parser.add_argument(
        "--check", action="store_true", help="the worker against the floor only; exit 1 above the limits"
    )
    parser.add_argument("--rounds", type=int, help="how often each contender runs [5; quick: 1]")
    parser.add_argument("--events", type=int, help="size of the topic [2000000; quick: 200000]")
    parser.add_argument("--devices", type=int, default=10_000, help="distinct devices [%(default)s]")
    parser.add_argument("--partitions", type=int, default=4, help="of the topic [%(default)s]")
    parser.add_argument(
        "--peers", action="store_true", help="quix-streams, faststream, bytewax too, each in its own venv"
    )
    parser.add_argument(
        "--peer-binary", action="append", default=[], metavar="NAME=PATH", help=f"one of {', '.join(binaries.KNOWN)}"
    )
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME=[@DIR] ARGUMENTS",
        help="the worker with further arguments, or of another checkout",
    )  # fmt: skip
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="contenders whose name has this")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.events = options.events or (200_000 if options.quick else 2_000_000)
    return options


if __name__ == "__main__":
    sys.exit(main())
