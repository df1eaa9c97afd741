"""`python -m worker.local`: runs Kafka, Redis and ClickHouse until ^C; prints the worker's variables for them."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress

from worker.core.errors import ExitCode, Fatal
from worker.local import Server, start_clickhouse, start_kafka, start_redis

_SERVICES: dict[str, tuple[Callable[[], Server], tuple[str, ...]]] = {
    "kafka": (start_kafka, ("WORKER_BOOTSTRAP_SERVERS", "WORKER_TEST_KAFKA")),
    "redis": (start_redis, ("WORKER_REDIS_URL", "WORKER_TEST_REDIS")),
    "clickhouse": (start_clickhouse, ("WORKER_CLICKHOUSE_URL", "WORKER_TEST_CLICKHOUSE")),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.local", description=__doc__)
    parser.add_argument("--only", metavar="NAME,…", default=",".join(_SERVICES), help="of: %(default)s")
    parser.add_argument("--fetch", action="store_true", help="download what is missing, then exit")
    arguments = parser.parse_args(argv)
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in _SERVICES]:
        parser.error(f"--only: unknown service {', '.join(unknown)}; choose from {', '.join(_SERVICES)}")
    try:
        return _run(names, fetch_only=arguments.fetch)
    except Fatal as error:
        print(error, file=sys.stderr)
        return error.code


def _run(names: list[str], *, fetch_only: bool) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell starts `… &` with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    stopping = {signal.SIGINT, signal.SIGTERM}
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        servers = {}
        for name in names:
            server = _SERVICES[name][0]()  # downloads what is missing
            stack.callback(server.close)
            servers[name] = server
        if fetch_only:
            return ExitCode.OK
        for name, server in servers.items():
            server.start()
            for variable in _SERVICES[name][1]:
                print(f"export {variable}={server.address}", flush=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
        print(f"{', '.join(names)} ready; ^C stops them", file=sys.stderr, flush=True)
        signal.sigwait(stopping)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
