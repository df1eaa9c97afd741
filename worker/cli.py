"""The commands and their arguments; flags of settings are made from the settings' fields."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Container, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from worker.config.parsers import nearest, number
from worker.config.settings import Settings, UsageError, default_of, flag_of, written
from worker.config.sources import CONFIG_VARIABLE, from_environment, load
from worker.core.counters import REJECT_REASONS
from worker.core.version import version_text
from worker.decoding.timestamps import to_seconds

COMMANDS = {
    "run": "read the topic into the store (the default: needs no word)",
    "produce": "write events as a fleet of devices would",
    "count": "print the number of distinct devices",
    "timestamps": "test the timestamp parser with a file of cases",
    "check": "look at Kafka, the store, options and rights, and say what to mend",
    "verify": "compare the topic with what the store and the dead letters have",
    "dlq": "list, count or replay dead letters",
    "top": "show a running worker live",
    "demo": "see it run: an embedded broker and store, a producer, a live table",
    "schema": "print the JSON Schema of the file that --config names",
}

_ALL = tuple(item.name for item in fields(Settings))


class _Parser(argparse.ArgumentParser):
    """Says what to write instead; exits with 2 as argparse does."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
            message += nearest(word, [flag for action in self._actions for flag in action.option_strings])
        raise UsageError(f"{message}; see: {self.prog} --help")


def parse(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """Split argv into the command and its arguments; raises UsageError."""
    words = list(argv)
    command = "run"
    if words and not words[0].startswith("-"):
        command = words.pop(0)
        if command not in COMMANDS:
            raise UsageError(
                f"unknown command {command!r}{nearest(command, list(COMMANDS))}; see: python -m worker --help"
            )
    parser = _parser(command)
    return command, parser.parse_args(words)


def loaded(arguments: argparse.Namespace) -> tuple[Settings, dict[str, str]]:
    """Build the settings from parsed arguments, environment and file; also return where each one came from."""
    given = vars(arguments)
    flags: dict[str, Any] = {
        item.name: given[item.name] for item in fields(Settings) if given.get(item.name) is not None
    }
    if "kafka" in flags:
        flags["kafka"] = dict(_property(text) for text in flags["kafka"])
    if "topic" in flags:
        flags["topic"] = ",".join(flags["topic"])
    environ = from_environment()
    named = given.get("config") or environ.get(CONFIG_VARIABLE)
    return load(flags, environ, Path(named) if named else None)


def settings_of(arguments: argparse.Namespace) -> tuple[Settings, dict[str, str]]:
    """Return what `loaded` does; a topic is required."""
    settings, origins = loaded(arguments)
    if not settings.topic:
        raise UsageError("which topic? write --topic NAME (or set WORKER_TOPIC)")
    return settings, origins


def _parser(command: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m worker" + ("" if command == "run" else f" {command}"),
        description=COMMANDS[command] if command != "run" else "Read events from Kafka into Redis or ClickHouse.",
        epilog=None if command != "run" else _overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"worker {version_text()}, Python {sys.version.split()[0]}"
    )
    {
        "run": _settings_arguments,
        "count": _count_arguments,
        "check": _check_arguments,
        "verify": _verify_arguments,
        "dlq": _dlq_arguments,
        "produce": _produce_arguments,
        "timestamps": _timestamps_arguments,
        "top": _top_arguments,
        "demo": _demo_arguments,
    }.get(command, _no_arguments)(parser)
    return parser


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["commands (python -m worker COMMAND --help):", *lines])


def _settings_arguments(parser: argparse.ArgumentParser, only: Container[str] = _ALL) -> None:
    """Add the flags of the settings, or of some of them."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"TOML file of options [{CONFIG_VARIABLE}]")
    parser.add_argument(
        "--print-config", action="store_true", help="print every option and where its value comes from, as TOML; exit"
    )
    for item in fields(Settings):
        meta = item.metadata
        if meta["secret"] or item.name not in only:
            continue  # secrets come from the environment or a file
        default = default_of(item)
        shown = written(default)
        text = meta["help"] + (
            f" [{shown}{' ' + meta['unit'] if meta['unit'] else ''}]" if shown not in ("", {}) else ""
        )
        text = text.replace("%", "%%")
        if default == {}:
            parser.add_argument(flag_of(item.name), dest=item.name, action="append", metavar=meta["metavar"], help=text)
        elif item.type in ("bool", bool):
            parser.add_argument(
                flag_of(item.name), dest=item.name, action="store_const", const="true", help=meta["help"]
            )
        else:
            metavar = "|".join(meta["choices"]) or meta["metavar"] or meta["unit"].upper() or "VALUE"
            several: Any = {"action": "append"} if item.name == "topic" else {}
            parser.add_argument(flag_of(item.name), dest=item.name, metavar=metavar, help=text, **several)


def _produce_arguments(parser: argparse.ArgumentParser) -> None:
    for flag, default, parse, text in (
        ("num-devices", 10_000, number(1, 2**24 - 1), "distinct devices"),
        ("pause-ms", 0, number(0, 10**9, float), "pause after each event"),
        ("num-messages", 1_000_000, number(0, 10**12), "events"),
    ):
        names = (f"--{flag}", f"--{flag.replace('-', '_')}")
        parser.add_argument(*names, type=_checked(parse), default=default, metavar="N", help=f"{text} [{default}]")
    parser.add_argument("--seed", type=_checked(number(0, 2**63)), help="the same events every time")
    parser.add_argument(
        "--partitions", type=_checked(number(1, 100_000)), help="make the topic with so many, if it is missing"
    )
    parser.add_argument(
        "--bad-ratio", type=_checked(number(0, 1, float)), default=0.0, help="part of the events that is broken"
    )
    _settings_arguments(parser, only=("topic", "bootstrap_servers", "kafka"))


def _timestamps_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="lines of input,expected")


def _top_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metrics", default="http://127.0.0.1:9108", metavar="URL", help="a worker's metrics address")


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="redis", choices=("redis", "clickhouse"))
    parser.add_argument("--processes", type=_checked(number(1, 64)), default=2, help="consumer processes [2]")
    parser.add_argument("--rate", type=_checked(number(1, 10**7)), default=20_000, help="events a second [20000]")
    parser.add_argument("--seconds", type=_checked(number(1, 10**6, float)), help="end by itself after so long")
    parser.add_argument("--chaos", action="store_true", help="kill -9 a consumer every 3 s")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--create", action="store_true", help="make the topics and the table that are missing")
    parser.add_argument(
        "--partitions", type=_checked(number(1, 100_000)), default=4, help="partitions of a topic that is made [4]"
    )
    _settings_arguments(parser)


def _count_arguments(parser: argparse.ArgumentParser) -> None:
    for flag, dest, text in (("from", "start", "count the windows since this time, in UTC"), ("to", "end", "up to it")):
        parser.add_argument(
            f"--{flag}", dest=dest, type=_checked(to_seconds), metavar="TIME", help=f"{text}: 2026-11-01 or …T05:30"
        )
    _settings_arguments(parser)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit code 0: every committed event is seen to be there once. 1: something is missing, doubled or extra;\n"
        "or it cannot be told, because the table's engine merges rows (Replacing, Summing …) by a sorting key\n"
        "without the origin columns _topic, _partition and _offset."
    )
    parser.add_argument("--limit", type=_checked(number(1, 10**6)), default=20, help="ranges of a problem to show [20]")
    parser.add_argument(
        "--allow-merged", action="store_true", help="take events that may have been merged away for that, not for lost"
    )
    _settings_arguments(parser)


def _dlq_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Letters of other consumer groups (--group-id) are left out. A replay writes the events to the topic that\n"
        "they came from, so that every group that reads it gets them again, also one that has written them before."
    )
    parser.add_argument("action", choices=("list", "stats", "replay"), help="replay: back into the topic, each once")
    parser.add_argument("--limit", type=_checked(number(1, 10**9)), default=100, help="letters to list [100]")
    parser.add_argument("--payload", action="store_true", help="list the events themselves, too")
    parser.add_argument("--reason", choices=REJECT_REASONS, metavar="R", help="list or replay only these letters")
    parser.add_argument("--yes", action="store_true", help="replay, and not only say what would be")
    _settings_arguments(parser)


def _no_arguments(_: argparse.ArgumentParser) -> None:
    """`schema` has none."""


def _checked(parse: Any) -> Any:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} does not fit: {error}") from None

    return convert


def _property(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"-X {text!r} does not fit: write KEY=VALUE, for example -X security.protocol=SASL_SSL")
    return key.strip(), value.strip()
