"""What the texts of options may be: parsers, each with what it takes as JSON Schema."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from worker.config import field_paths

TOPIC_PLACEHOLDER = "{topic}"  # in a template
WINDOWS = {"minute": 60, "hour": 3600, "day": 86_400}  # what `--windows` knows, with its length in seconds
# Kafka's own rule: kafka.common.Topic.validate
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_NAME = r"([A-Za-z_]|\{topic\})([A-Za-z0-9_]|\{topic\})*"
_TABLE = re.compile(rf"{_NAME}(\.{_NAME})?")
_TTL = re.compile(r"(minute|hour|day)=([1-9][0-9]{0,5})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True)
class OptionParser:
    """A parser of an option's text, and what it takes as JSON Schema."""

    parse: Callable[[str], Any]
    schema: Mapping[str, Any]

    def __call__(self, text: str) -> Any:
        return self.parse(text)


def number(low: float, high: float, kind: type[int] | type[float] = int) -> OptionParser:
    """Return a parser of a number in [low, high]."""
    noun = "a whole number" if kind is int else "a number"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise ValueError(f"write {noun} from {low:g} to {high:g}")
        return value

    return OptionParser(parse, {"type": "integer" if kind is int else "number", "minimum": low, "maximum": high})


def _processes(text: str) -> int | None:
    """Parse `auto` (None) or a number of consumer processes."""
    if text == "auto":
        return None
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= 256:
        raise ValueError("write a number of processes from 1 to 256, or auto for one per partition")
    return value


def _switch(text: str) -> bool:
    """Parse a yes/no text."""
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError("write true or false")
    return words[text.lower()]


def _properties(text: str) -> dict[str, str]:
    """Parse `KEY=VALUE`, one a line, as in Kafka's own client.properties; blank lines and comments (#) are skipped."""
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, separator, value = line.partition("=")
        if not line.startswith("#"):
            if not separator or not key.strip():
                raise ValueError("write one KEY=VALUE a line, for example security.protocol=SASL_SSL")
            found[key.strip()] = value.strip()
    return found


def _topics(text: str) -> str:
    """Parse names of topics and patterns (they begin with ^), with commas; those in a pattern's {2,3} are its own."""
    words = [word for word in map(str.strip, re.split(r",(?![^{]*\})", text)) if word]
    for word in words:
        if word.startswith("^"):
            try:
                re.compile(word)
            except re.error as error:
                raise ValueError(f"{word} is no regular expression: {error}") from None
        elif not _TOPIC.fullmatch(word) or word in {".", ".."}:
            raise ValueError(
                "write a topic name: letters, digits, '.', '_' and '-', 249 at most; or a regular expression that "
                "begins with ^"
            )
    return ",".join(dict.fromkeys(words))


def url(*schemes: str) -> OptionParser:
    """Return a parser of a URL with one of these schemes, and one host or more of them with commas."""

    def parse(text: str) -> str:
        try:
            parts = urlsplit(text)
            hosts = parts.netloc.rpartition("@")[2].split(",")
            usable = parts.scheme in schemes and all(urlsplit(f"//{host}").port != 0 for host in hosts)
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(f"write a URL such as {schemes[0]}://127.0.0.1:… ({' or '.join(schemes)})")
        return text

    return OptionParser(parse, {"type": "string", "pattern": f"^({'|'.join(map(re.escape, schemes))}):"})


def _table(text: str) -> str:
    """Parse the name of a table, with or without its database; {topic} stands for the topic in it."""
    if not _TABLE.fullmatch(text):
        raise ValueError(
            "write a table name: letters, digits, '_' and {topic}, with its database before a '.' if needed"
        )
    return text


def _dead_letter_topic(text: str) -> str:
    """Parse the name of a topic; {topic} stands for the event's in it."""
    if text == TOPIC_PLACEHOLDER or not _TOPIC.fullmatch(text.replace(TOPIC_PLACEHOLDER, "t")):
        raise ValueError("write the name of another topic; {topic} in it stands for the event's")
    return text


def windows(text: str) -> str:
    """Parse names of windows with commas."""
    names = [name for name in map(str.strip, text.split(",")) if name]
    if not set(names) <= set(WINDOWS):
        raise ValueError(f"write some of {', '.join(WINDOWS)}, with commas")
    return ",".join(name for name in WINDOWS if name in names)


def window_ttls(text: str) -> dict[str, int]:
    """Return how long each window's keys live after their slice, in seconds: the defaults, and what the text says."""
    found = {"minute": 86_400, "hour": 30 * 86_400, "day": 400 * 86_400}
    for word in filter(None, map(str.strip, text.split(","))):
        parts = _TTL.fullmatch(word)
        if not parts:
            raise ValueError("write WINDOW=TIME with commas, such as minute=1d,hour=30d,day=400d (s, m, h or d)")
        found[parts[1]] = int(parts[2]) * _SECONDS[parts[3]]
    return found


def window_ttl(text: str) -> str:
    window_ttls(text)
    return text


def nearest(word: str, known: list[str]) -> str:
    """Return ` (did you mean X?)` for the nearest known word, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""


processes = OptionParser(_processes, {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 256}]})
switch = OptionParser(_switch, {"type": "boolean"})
properties = OptionParser(
    _properties, {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
)
topics = OptionParser(_topics, {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
columns = OptionParser(
    lambda text: field_paths.columns(text.split(",")),
    {"type": "object", "additionalProperties": {"type": ["string", "array", "object"]}},
)
field_path = OptionParser(field_paths.field, {"type": "string", "minLength": 1})
table = OptionParser(_table, {"type": "string", "pattern": f"^{_TABLE.pattern}$"})
dead_letter_topic = OptionParser(_dead_letter_topic, {"type": "string"})
