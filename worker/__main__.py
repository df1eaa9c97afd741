"""The program `worker`: argv, environment and file → settings → the command."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial

from worker import cli
from worker.commands.terminal import printable
from worker.config.settings import Settings, UsageError, toml_value
from worker.core import log, streams
from worker.core.errors import ExitCode, Fatal, WorkerError
from worker.core.native import describe_reader
from worker.core.version import version_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code. Every expected failure is one line on stderr.

    If stdout cannot be written it is 141 (the reader of a pipe has ended) or 1, whatever the command returned.
    """
    words = sys.argv[1:] if argv is None else argv
    # `run` may start without a stdout, as services do; the results of the other commands must not get lost.
    streams.prepare(discard_output=not words or words[0].startswith("-") or words[0] == "run")
    code, failure = 0, None
    try:
        code = _run_command(words)
    except (OSError, SystemExit) as error:  # SystemExit: of --help
        failure = error
    if (output_error := streams.flush()) is not None:
        return streams.exit_code(output_error)
    if failure is not None:
        raise failure
    return code


def _run_command(argv: Sequence[str]) -> int:
    try:
        command, arguments = cli.parse(argv)
        if getattr(arguments, "print_config", False):
            return _print_config(arguments)
        return _COMMANDS[command](arguments)
    except WorkerError as error:
        text = "\n".join(map(printable, str(error).split("\n")))
        streams.report(text, log.priority(logging.ERROR))
        return error.code if isinstance(error, Fatal) else ExitCode.FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _print_config(arguments: argparse.Namespace) -> int:
    from worker.config.export import as_toml

    print(as_toml(*cli.load_settings(arguments)), end="")
    return ExitCode.OK


def _schema(_: argparse.Namespace) -> int:
    from worker.config.export import json_schema

    print(json.dumps(json_schema(), indent=2))
    return ExitCode.OK


def _run(arguments: argparse.Namespace) -> int:
    from worker.config.sources import from_environment
    from worker.config.topic_selection import Selection
    from worker.core.counters import Stats
    from worker.core.process import ServiceManager
    from worker.ingest import consumer
    from worker.monitor import process
    from worker.sinks import import_sink
    from worker.supervisor import Supervisor

    settings, _ = cli.settings_of(arguments)
    Selection(settings)  # rejects a dead-letter loop before anything is forked
    stats = Stats()
    on_drop = partial(stats.supervisor.add, "dropped_log_lines")
    log.configure(settings.log_format, settings.log_level, "supervisor", on_drop)
    import_sink(settings.backend)
    _log_start(settings)
    return Supervisor(
        settings,
        stats,
        consume=lambda index: consumer.run(settings, stats, index),
        monitor=lambda report: process.run(settings, stats, report),
        service_manager=ServiceManager(from_environment().get("NOTIFY_SOCKET")),
    ).run()


def _log_start(settings: Settings) -> None:
    """Log the versions and the settings."""
    from worker.kafka.properties import librdkafka_version

    effective = {name: toml_value(value) for name, value in settings.redacted().items()}
    effective["processes"] = str(effective["processes"])  # one type, also in an index of log lines
    effective |= {"redis_key": settings.redis_key_name, "dead_letter_topic": settings.dead_letter_topic_name}
    logging.getLogger("worker").info(
        "worker %s, librdkafka %s, Python %s, reader %s",
        version_text(),
        librdkafka_version(),
        platform.python_version(),
        describe_reader(settings.reader),
        extra=log.fields(**effective),
    )


def _count(arguments: argparse.Namespace) -> int:
    from worker.commands.count import Span, count

    settings, _ = cli.settings_of(arguments)
    span = Span(arguments.windows_from, arguments.windows_to, arguments.last)
    return count(settings, span, out=sys.stdout, notes=sys.stderr)


def _produce(arguments: argparse.Namespace) -> int:
    from worker.commands.produce import ProduceOptions, produce
    from worker.kafka.properties import produce_properties

    settings, _ = cli.settings_of(arguments)
    if not settings.one_topic:
        raise UsageError("--topic: produce writes to one topic, named in full")
    options = ProduceOptions(
        settings.bootstrap_servers,
        settings.topic,
        num_devices=arguments.num_devices,
        pause_ms=arguments.pause_ms,
        num_messages=arguments.num_messages,
        seed=arguments.seed,
        partitions=arguments.partitions,
        bad_ratio=arguments.bad_ratio,
        properties=produce_properties(settings),
        registry=None if settings.format == "json" else settings,
    )
    return produce(options, stop=_on_signals(), progress=sys.stderr)


def _on_signals() -> Callable[[], bool]:
    """Return a function that is true once SIGINT or SIGTERM has come."""
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.append(number))
    return lambda: bool(stopped)


def _timestamps(arguments: argparse.Namespace) -> int:
    from worker.commands.timestamps import timestamps

    return timestamps(arguments.file)


def _top(arguments: argparse.Namespace) -> int:
    from worker.commands.top import top

    return top(arguments.metrics, stream=sys.stdout, stop=_on_signals())


def _demo(arguments: argparse.Namespace) -> int:
    from worker.commands.demo import demo

    return demo(
        backend=arguments.backend,
        processes=arguments.processes,
        rate=arguments.rate,
        seconds=arguments.seconds,
        chaos=arguments.chaos,
        stop=_on_signals(),
    )


def _check(arguments: argparse.Namespace) -> int:
    from worker.commands.check import check
    from worker.commands.check.propose import print_proposals

    settings, _ = cli.settings_of(arguments)
    log.configure(settings.log_format, "critical", "check")  # errors are findings
    create, partitions, sample = arguments.create, arguments.partitions, arguments.sample
    if arguments.propose and ("clickhouse" not in settings.backends or not sample):
        raise UsageError("--propose: it needs --backend clickhouse, and a --sample of at least 1 event")
    if arguments.propose and not create:
        return print_proposals(settings, sample=sample, out=sys.stdout, notes=sys.stderr)
    proposed = sys.stderr if arguments.propose else None
    return check(settings, create=create, partitions=partitions, sample=sample, out=sys.stdout, proposed=proposed)


def _verify(arguments: argparse.Namespace) -> int:
    from worker.commands.verify import verify

    settings, _ = cli.settings_of(arguments)
    if arguments.allow_merged and settings.backend == "redis":
        raise UsageError("--allow-merged: it has no effect with --backend redis; leave it out")
    log.configure(settings.log_format, settings.log_level, "verify")
    limit, merged = arguments.limit, arguments.allow_merged
    return _for_each_topic(
        settings,
        lambda topic: verify(topic, limit=limit, allow_merged=merged, out=sys.stdout, progress=sys.stderr),
    )


def _dlq(arguments: argparse.Namespace) -> int:
    from worker.commands import dlq

    settings, _ = cli.settings_of(arguments)
    log.configure(settings.log_format, settings.log_level, "dlq")
    reason, limit, payload = arguments.reason, arguments.limit, arguments.payload
    out = sys.stdout
    actions: dict[str, Callable[[Settings], int]] = {
        "stats": lambda topic: dlq.count_dead_letters(topic, out=out),
        "replay": lambda topic: dlq.replay(
            topic,
            reason=reason,
            yes=arguments.yes,
            from_start=arguments.from_start,
            out=sys.stdout,
            progress=sys.stderr,
        ),
        "list": lambda topic: dlq.list_dead_letters(topic, reason=reason, limit=limit, payload=payload, out=out),
    }
    return _for_each_topic(settings, actions[arguments.action])


def _completion(arguments: argparse.Namespace) -> int:
    from worker.commands.completion import write_completion

    return write_completion(cli.completion_parser(), arguments.shell, out=sys.stdout)


def _for_each_topic(settings: Settings, command: Callable[[Settings], int]) -> int:
    """Run a command for each topic, with a heading if there are several; return the worst exit code."""
    from worker.kafka.topics import each_topic

    worst: int = ExitCode.OK
    for topic_settings in each_topic(settings):
        if not settings.one_topic:
            print(f"== {topic_settings.topic}", flush=True)
        worst = max(worst, command(topic_settings))
    return worst


_COMMANDS = {
    "run": _run,
    "count": _count,
    "produce": _produce,
    "timestamps": _timestamps,
    "check": _check,
    "verify": _verify,
    "dlq": _dlq,
    "top": _top,
    "demo": _demo,
    "schema": _schema,
    "completion": _completion,
}

if __name__ == "__main__":
    sys.exit(main())
