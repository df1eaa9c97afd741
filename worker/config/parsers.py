"""Parsers of option texts, each with the JSON Schema of its values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from worker.config import field_paths

TOPIC_PLACEHOLDER = "{topic}"  # in the name of a key, table or topic
TYPE_RULES = ("strict", "lenient")
WINDOWS = {"minute": 60, "hour": 3600, "day": 86_400}  # seconds of each window of `--windows`
# Kafka's own rule: kafka.common.Topic.validate
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_NAME = r"(`([^`\\]|\\.)+`|\"[^\"]+\"|([A-Za-z0-9_-]|\{topic\})+)"
_TABLE = re.compile(rf"{_NAME}(\.{_NAME})?")
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
START_NAMES = ("earliest", "latest")
_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True)
class OptionParser:
    """A parser of an option's text, and the JSON Schema of its values."""

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
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError("write true or false")
    return words[text.lower()]


def _properties(text: str) -> dict[str, str]:
    """Parse lines of `KEY=VALUE`, as in Kafka's client.properties. Blank lines and comments (#) are skipped."""
    values: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, separator, value = line.partition("=")
        if not line.startswith("#"):
            if not separator or not key.strip():
                raise ValueError("write one KEY=VALUE per line, for example security.protocol=SASL_SSL")
            values[key.strip()] = value.strip()
    return values


def _topics(text: str) -> str:
    """Parse topic names and patterns (^…) separated by commas. A comma in a pattern's {2,3} does not separate."""
    words = [word for word in map(str.strip, re.split(r",(?![^{]*\})", text)) if word]
    for word in words:
        if word.startswith("^"):
            try:
                re.compile(word)
            except re.error as error:
                raise ValueError(f"{word} is not a regular expression: {error}") from None
        elif not _TOPIC.fullmatch(word) or word in {".", ".."}:
            raise ValueError(
                "write a topic name: letters, digits, '.', '_' and '-', at most 249; or a regular expression that "
                "begins with ^"
            )
    return ",".join(dict.fromkeys(words))


def url(*schemes: str) -> OptionParser:
    """Return a parser of a URL with one of these schemes, and one or more hosts separated by commas."""

    def parse(text: str) -> str:
        if _has_unescaped_credentials(text):
            raise ValueError(
                "in a URL's user and password, write @ as %40, / as %2F, ? as %3F, # as %23 and % as %25; or leave the "
                "password out, and set WORKER_…_PASSWORD or WORKER_…_PASSWORD_FILE"
            )
        try:
            parts = urlsplit(text)
            hosts = parts.netloc.rpartition("@")[2].split(",")
            valid = parts.scheme in schemes and all(urlsplit(f"//{host}").port != 0 for host in hosts)
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"write a URL such as {schemes[0]}://127.0.0.1:… ({' or '.join(schemes)})")
        return text

    return OptionParser(parse, {"type": "string", "pattern": f"^({'|'.join(map(re.escape, schemes))}):"})


def optional_url(*schemes: str) -> OptionParser:
    """Return a parser of a URL, or of an empty text."""
    required = url(*schemes)
    return OptionParser(lambda text: text and required(text), {"anyOf": [{"const": ""}, required.schema]})


def _has_unescaped_credentials(url: str) -> bool:
    """Whether a user or password has characters that end it too early, so that its rest would pass for a host."""
    rest = url.partition("://")[2]
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    before_at, at, _ = rest[len(authority) :].partition("@")
    in_query_value = re.search(r"\?.*=", before_at)
    return authority.count("@") > 1 or bool(at and not in_query_value)


def _table(text: str) -> str:
    """Parse the name of a table, with or without its database. {topic} in it stands for the topic."""
    if not _TABLE.fullmatch(text):
        raise ValueError(
            "write a table name: letters, digits, '_', '-' and {topic}, with its database before a '.' if needed; "
            "other names in backticks or double quotes"
        )
    return text


def _dead_letter_topic(text: str) -> str:
    """Parse the name of a topic. {topic} in it stands for the event's topic."""
    if text == TOPIC_PLACEHOLDER or not _TOPIC.fullmatch(text.replace(TOPIC_PLACEHOLDER, "t")):
        raise ValueError("write the name of another topic; {topic} in it stands for the event's topic")
    return text


def _function(text: str) -> str:
    """Parse the name of a Python function with its module, or an empty text."""
    if text and not _FUNCTION.fullmatch(text):
        raise ValueError("write MODULE:FUNCTION, such as fleet:transform for `def transform(events)` in fleet.py")
    return text


def time(text: str) -> datetime:
    """Parse a time of the years that events may have; it is naive if it names no offset."""
    parsed = _any_time(text)
    if not 1900 <= parsed.year < 2300:
        raise ValueError("write a time in the years 1900 to 2299")
    return parsed


def _any_time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("write a time such as 2026-11-01, 2026-11-01T05:30Z or 2026-11-01T05:30:00+01:00") from None


def to_millis(text: str) -> int:
    """Return the Unix milliseconds of a time that has passed; UTC if it names no other offset."""
    parsed = _any_time(text)
    parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    if not datetime(1970, 1, 1, tzinfo=UTC) <= parsed <= datetime.now(UTC):
        raise ValueError("write a time between 1970 and now")
    return int(parsed.timestamp() * 1000)


def _start(text: str) -> str:
    """Parse `earliest`, `latest` or a time."""
    try:
        if text not in START_NAMES:
            to_millis(text)
    except ValueError as error:
        raise ValueError(f"{error}; or {' or '.join(START_NAMES)}") from None
    return text


def _until(text: str) -> str:
    if text:
        to_millis(text)
    return text


def windows(text: str) -> str:
    names = [name for name in map(str.strip, text.split(",")) if name]
    if not set(names) <= set(WINDOWS):
        raise ValueError(f"write some of {', '.join(WINDOWS)}, separated by commas")
    return ",".join(name for name in WINDOWS if name in names)


def window_ttls(text: str) -> dict[str, int]:
    """Return how long each window's keys live after its end, in seconds: the text overrides the defaults."""
    ttls = {"minute": 86_400, "hour": 30 * 86_400, "day": 400 * 86_400}
    for word in filter(None, map(str.strip, text.split(","))):
        name, _, ttl = word.partition("=")
        if name not in ttls or not _DURATION.fullmatch(ttl):
            raise ValueError("write WINDOW=TIME pairs with commas, such as minute=1d,hour=30d,day=400d (s, m, h or d)")
        ttls[name] = duration(ttl)
    return ttls


def window_ttl(text: str) -> str:
    window_ttls(text)
    return text


def duration(text: str) -> int:
    """Return the seconds of a text such as 15m."""
    parts = _DURATION.fullmatch(text)
    if not parts:
        raise ValueError("write a time such as 15m, 2h or 7d (s, m, h or d)")
    return int(parts[1]) * _SECONDS[parts[2]]


def _time_zone(text: str) -> str:
    """Parse the name of a time zone that this machine has, or an empty text. What `localtime` is varies by machine."""
    from zoneinfo import available_timezones  # takes 5 ms

    zones = available_timezones() - {"localtime"} if text not in ("", "UTC") else {text}
    if text not in zones:
        advice = "this machine has no time zone data: pip install tzdata, or apt-get install tzdata"
        raise ValueError(f"write a name such as Europe/Amsterdam{nearest(text, [*zones])}" if zones else advice)
    return text


def by_fields(text: str) -> tuple[str, ...]:
    r"""Return the fields of `--by`, separated by commas. A comma in a field is written `\,`."""
    return tuple(re.split(r"(?<!\\),", text)) if text else ()


def _by(text: str) -> str:
    """Parse one field, or two with a comma, or an empty text."""
    names = [field_paths.check_path(name.strip()) for name in by_fields(text)]
    if len(names) > 2 or len(set(names)) < len(names):
        raise ValueError("write one field, or two different ones: each combination of their values has its own keys")
    return ",".join(names)


def _types(text: str) -> dict[str, str]:
    """Parse COLUMN=lenient or COLUMN=strict, separated by commas."""
    rules: dict[str, str] = {}
    for word in filter(None, map(str.strip, text.split(","))):
        column, _, rule = word.rpartition("=")
        if not column or rule not in TYPE_RULES:
            raise ValueError(f"{word!r}: write COLUMN=lenient or COLUMN=strict")
        rules[column] = rule
    return rules


def nearest(word: str, candidates: list[str]) -> str:
    """Return ` (did you mean X?)` for the nearest candidate, or an empty text."""
    matches = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""


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
types = OptionParser(_types, {"type": "object", "additionalProperties": {"enum": list(TYPE_RULES)}})
field_path = OptionParser(field_paths.check_path, {"type": "string", "minLength": 1})
by = OptionParser(_by, {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 2}]})
time_zone = OptionParser(_time_zone, {"type": "string"})
table = OptionParser(_table, {"type": "string", "pattern": f"^{_TABLE.pattern}$"})
start = OptionParser(_start, {"type": "string"})
until = OptionParser(_until, {"type": "string"})
function = OptionParser(_function, {"type": "string"})
dead_letter_topic = OptionParser(_dead_letter_topic, {"type": "string"})
