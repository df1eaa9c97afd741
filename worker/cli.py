"""The commands and their arguments. The settings' fields define their flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Container, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from worker.commands.completion import SHELLS
from worker.config.parsers import duration, nearest, number, time
from worker.config.settings import Settings, UsageError, default_of, flag_of, toml_value
from worker.config.sources import CONFIG_VARIABLE, from_environment, load, reject_other_backends_options
from worker.core.counters import REJECT_REASONS
from worker.core.version import version_text

COMMANDS = {
    "run": "write a topic's events into the store (the default command)",
    "produce": "write simulated device events to a topic",
    "count": "print the number of distinct devices",
    "timestamps": "test the timestamp parser with a file of cases",
    "check": "check Kafka, the store, options and rights, and report what to fix",
    "verify": "compare the topic with the store and the dead letters",
    "dlq": "list, count or replay dead letters",
    "top": "show the live status of a running worker",
    "demo": "run the worker on an embedded broker and store, with a live table",
    "schema": "print the JSON Schema of the --config file",
    "completion": "print the completion script for a shell",
}

_ALL = tuple(item.name for item in fields(Settings))
_PRODUCE = ("topic", "bootstrap_servers", "kafka", "format", "schema_registry_url", "schema_registry_ca")


class _Parser(argparse.ArgumentParser):
    """Raises UsageError with a hint instead of argparse's usage text and exit code 2."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
            message += nearest(word, [flag for action in self._actions for flag in action.option_strings])
        raise UsageError(f"{message}; see: {self.prog} --help")


class _Version(argparse.Action):
    """Prints the versions. They are read only then: importlib.metadata takes a fifth of the time of `--help`."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from worker.core.native import describe_reader

        print(f"worker {version_text()}, Python {sys.version.split()[0]}, reader {describe_reader('auto')}")
        parser.exit()


def parse(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """Split argv into the command and its arguments; raises UsageError."""
    words = list(argv)
    command = "run"
    if words and not words[0].startswith("-"):
        command = words.pop(0)
        if command not in COMMANDS:
            raise UsageError(f"unknown command {command!r}{nearest(command, list(COMMANDS))}; see: worker --help")
    parser = _parser(command)
    return command, parser.parse_args(words)


def load_settings(arguments: argparse.Namespace) -> tuple[Settings, dict[str, str]]:
    """Build the settings from parsed arguments, environment and file; also return the origin of each."""
    given = vars(arguments)
    flags: dict[str, Any] = {
        item.name: given[item.name] for item in fields(Settings) if given.get(item.name) is not None
    }
    if "kafka" in flags:
        flags["kafka"] = dict(_property(text) for text in flags["kafka"])
    if "topic" in flags:
        flags["topic"] = ",".join(flags["topic"])
    environ = from_environment()
    config = given.get("config") or environ.get(CONFIG_VARIABLE)
    settings, origins = load(flags, environ, Path(config) if config else None)
    if "backend" in given:  # a command that uses a store
        reject_other_backends_options(settings, origins)
    return settings, origins


def settings_of(arguments: argparse.Namespace) -> tuple[Settings, dict[str, str]]:
    """Like `load_settings`, but a topic is required."""
    settings, origins = load_settings(arguments)
    if not settings.topic:
        raise UsageError("no topic: write --topic NAME (or set WORKER_TOPIC)")
    return settings, origins


def _parser(command: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="worker" + ("" if command == "run" else f" {command}"),
        description=COMMANDS[command] if command != "run" else "Read events from Kafka into Redis or ClickHouse.",
        epilog=None if command != "run" else _overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    _add_arguments(command, parser)
    return parser


def _add_arguments(command: str, parser: argparse.ArgumentParser) -> None:
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
        "completion": _completion_arguments,
    }.get(command, _no_arguments)(parser)


def completion_parser() -> argparse.ArgumentParser:
    """Return one parser with all commands as subparsers, for completion only: in `parse` the default is `run`."""
    parser = _parser("run")
    commands = parser.add_subparsers(metavar="COMMAND")
    for command, text in COMMANDS.items():
        _add_arguments(command, commands.add_parser(command, help=text, description=text))
    choices = {item.name: item.metadata["choices"] for item in fields(Settings) if item.metadata["choices"]}
    for each in (parser, *commands.choices.values()):
        for action in each._actions:
            action.choices = action.choices or choices.get(action.dest)
    return parser


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["commands (worker COMMAND --help):", *lines])


def _settings_arguments(parser: argparse.ArgumentParser, only: Container[str] = _ALL) -> None:
    """Add the flags of the settings, or of some of them."""
    groups: dict[str, Any] = {}
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"TOML file of options [{CONFIG_VARIABLE}]")
    parser.add_argument(
        "--print-config", action="store_true", help="print every option and its origin as TOML, and exit"
    )
    for item in fields(Settings):
        meta = item.metadata
        if meta["secret"] or item.name not in only:
            continue  # secrets come only from the environment or a file
        group = groups.get(meta["group"]) or groups.setdefault(meta["group"], parser.add_argument_group(meta["group"]))
        default = toml_value(default_of(item))
        shown = f" [{default}{' ' if meta['unit'] else ''}{meta['unit']}]" if default not in ("", {}) else ""
        metavar = "|".join(meta["choices"]) or meta["metavar"] or meta["unit"].upper() or "VALUE"
        how: dict[str, Any] = {"metavar": metavar, "help": (meta["help"] + shown).replace("%", "%%")}
        if default == {} or item.name == "topic":
            how["action"] = "append"
        elif item.type in ("bool", bool):
            how = {"action": "store_const", "const": "true", "help": meta["help"]}
        group.add_argument(flag_of(item.name), dest=item.name, **how)


def _produce_arguments(parser: argparse.ArgumentParser) -> None:
    for flag, default, parse, text in (
        ("num-devices", 10_000, number(1, 2**24 - 1), "distinct devices"),
        ("pause-ms", 0, number(0, 10**9, float), "pause after each event"),
        ("num-messages", 1_000_000, number(0, 10**12), "events"),
    ):
        names = (f"--{flag}", f"--{flag.replace('-', '_')}")
        parser.add_argument(*names, type=_checked(parse), default=default, metavar="N", help=f"{text} [{default}]")
    parser.add_argument("--seed", type=_checked(number(0, 2**63)), help="seed for reproducible events")
    parser.add_argument(
        "--partitions", type=_checked(number(1, 100_000)), help="create a missing topic with this many partitions"
    )
    parser.add_argument("--bad-ratio", type=_checked(number(0, 1, float)), default=0.0, help="share of invalid events")
    _settings_arguments(parser, only=_PRODUCE)


def _timestamps_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="file with lines of input,expected")


def _top_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metrics", default="http://127.0.0.1:9108", metavar="URL", help="a worker's metrics address")


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="redis", choices=("redis", "clickhouse"))
    parser.add_argument("--processes", type=_checked(number(1, 64)), default=2, help="consumer processes [2]")
    parser.add_argument("--rate", type=_checked(number(1, 10**7)), default=20_000, help="events a second [20000]")
    parser.add_argument("--seconds", type=_checked(number(1, 10**6, float)), help="stop after this many seconds")
    parser.add_argument("--chaos", action="store_true", help="kill -9 a consumer every 3 s")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--create", action="store_true", help="create missing topics and a missing table")
    parser.add_argument(
        "--propose", action="store_true", help="print CREATE TABLE for the sampled events; with --create, run it"
    )
    parser.add_argument(
        "--partitions", type=_checked(number(1, 100_000)), default=4, help="partitions of a created topic [4]"
    )
    parser.add_argument(
        "--sample",
        type=_checked(number(0, 1_000_000)),
        metavar="N",
        default=1000,
        help="events of each topic to test on the store, from start, middle and end of its partitions; 0: none [1000]",
    )
    _settings_arguments(parser)


def _count_arguments(parser: argparse.ArgumentParser) -> None:
    for flag, text in (("from", "count windows from this time"), ("to", "count windows until this time")):
        parser.add_argument(
            f"--{flag}",
            dest=f"windows_{flag}",
            type=_checked(time),
            metavar="TIME",
            help=f"{text}: 2026-11-01 or …T05:30, in the time zone of the topic's days",
        )
    text = "count windows of the last 15m, 2h, 7d"
    parser.add_argument("--last", type=_checked(duration), metavar="TIME", help=text)
    _settings_arguments(parser)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit code 0: every committed event is stored once. 1: events are missing, duplicated or extra, or the table\n"
        "cannot prove it: its engine merges rows (Replacing, Summing …) by a sorting key without the origin columns\n"
        "_topic, _partition and _offset, its TTL removes rows, or another table stores them (Null, Distributed, views)."
    )
    parser.add_argument("--limit", type=_checked(number(1, 10**6)), default=20, help="ranges of a problem to show [20]")
    parser.add_argument(
        "--allow-merged",
        action="store_true",
        help="treat events whose rows the table may have merged or removed as stored",
    )
    _settings_arguments(parser)


def _dlq_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Dead letters of other consumer groups (--group-id) are omitted. A replay writes the events to their source\n"
        "topic, so every group that reads it receives them again, even if it has stored them before."
    )
    parser.add_argument("action", choices=("list", "stats", "replay"), help="replay: to the topic again, each once")
    parser.add_argument("--limit", type=_checked(number(1, 10**9)), default=100, help="dead letters to list [100]")
    parser.add_argument("--payload", action="store_true", help="also list the payloads")
    parser.add_argument("--reason", choices=REJECT_REASONS, metavar="R", help="list or replay only this reason")
    parser.add_argument(
        "--from-start", action="store_true", help="replay all, even if Kafka may have deleted the replay position"
    )
    parser.add_argument("--yes", action="store_true", help="replay; without it, only print what a replay would write")
    _settings_arguments(parser)


def _completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "bash: source <(worker completion bash)\n"
        'zsh:  worker completion zsh > "${fpath[1]}/_worker"\n'
        "fish: worker completion fish > ~/.config/fish/completions/worker.fish"
    )
    parser.add_argument("shell", choices=SHELLS)


def _no_arguments(_: argparse.ArgumentParser) -> None:
    """Add no arguments (`schema`)."""


def _checked(parse: Any) -> Any:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"invalid value {text!r}: {error}") from None

    return convert


def _property(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"-X {text!r}: write KEY=VALUE, for example -X security.protocol=SASL_SSL")
    return key.strip(), value.strip()
