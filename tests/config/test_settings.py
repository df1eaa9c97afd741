"""Options: a flag wins over a variable, a variable over the file; every error message what to write instead."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from worker.config.settings import Settings, UsageError
from worker.config.sources import OWNED_PROPERTIES, load, reject_other_backends_options
from worker.core.errors import ExitCode


def test_flag_wins_over_variable_over_file_over_default(tmp_path: Path) -> None:
    config = tmp_path / "worker.toml"
    config.write_text('topic = "file"\nbatch-rows = 7\nlinger_ms = 9\n')
    settings, origins = load({"topic": "flag"}, {"WORKER_TOPIC": "variable", "WORKER_BATCH_ROWS": "8"}, config)
    assert (settings.topic, settings.batch_rows, settings.linger_ms, settings.group_id) == (
        "flag",
        8,
        9,
        "worker-redis-devices",
    )
    assert origins == {"topic": "--topic", "batch_rows": "WORKER_BATCH_ROWS", "linger_ms": f"{config}: linger_ms"}


def test_a_variable_may_name_a_file_with_the_value(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("s3cret\n")
    settings, _ = load({"topic": "t"}, {"WORKER_REDIS_PASSWORD_FILE": str(secret)})
    assert settings.redis_password == "s3cret"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"processes": "0"}, "1 to 256"),
        ({"processes": "many"}, "auto"),
        ({"batch_rows": "0"}, "from 1 to"),
        ({"linger_ms": "1.5"}, "whole number"),
        ({"backend": "clickhose"}, "did you mean clickhouse"),
        ({"topic": "a b"}, "topic name"),
        ({"table": "x; DROP TABLE y"}, "table name"),
        ({"redis_url": "http://x"}, "redis://"),
        ({"redis_url": "redis://u:p@x"}, "WORKER_REDIS_PASSWORD_FILE"),
        ({"redis_url": "redis://:p/q@x"}, "WORKER_REDIS_PASSWORD_FILE"),
        ({"kafka": {"ssl.keystore.password": "x"}}, "every user of this machine can see"),
        ({"clickhouse_url": "clickhouse://u:p@x/"}, "WORKER_CLICKHOUSE_PASSWORD_FILE"),
        ({"max_bad_ratio": "nan"}, "from 0 to 1"),
        ({"format": "avro"}, "--format: avro needs a schema registry; name it with --schema-registry-url URL"),
    ],
)
def test_an_invalid_value_is_refused_with_what_to_write(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match="(?s).*" + message) as caught:
        load({"topic": "t", **flags}, {})
    assert caught.value.code == ExitCode.USAGE


def test_an_unknown_key_in_the_file_names_the_nearest_option(tmp_path: Path) -> None:
    config = tmp_path / "worker.toml"
    config.write_text("batch_row = 5")
    with pytest.raises(UsageError, match="did you mean batch_rows"):
        load({}, {}, config)


def test_secrets_in_the_file_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "worker.toml"
    config.write_text('redis_password = "x"')
    with pytest.raises(UsageError, match="WORKER_REDIS_PASSWORD_FILE"):
        load({}, {}, config)


@pytest.mark.parametrize("name", OWNED_PROPERTIES)
def test_properties_that_the_worker_owns_are_refused_with_a_reason(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load({"topic": "t", "kafka": {name: "x"}}, {})
    assert OWNED_PROPERTIES[name] in str(caught.value)


def test_redacted_settings_contain_no_secret(tmp_path: Path) -> None:
    secrets = {item.name: "canary" for item in fields(Settings) if item.metadata["secret"]}
    environ = {
        **{f"WORKER_{name.upper()}": value for name, value in secrets.items()},
        "WORKER_REDIS_URL": "redis://u:canary@h:1/0",
        "WORKER_CLICKHOUSE_URL": "clickhouse://u:canary@h/d",
    }
    config = tmp_path / "worker.toml"
    config.write_text('[kafka]\n"ssl.keystore.password" = "canary"\n"ssl.key.pem" = "canary"\n')
    settings, _ = load({"topic": "t"}, environ, config)
    assert settings.kafka["ssl.key.pem"] == "canary"
    assert secrets
    assert "canary" not in str(settings.redacted())


def test_the_key_keeps_the_topic_in_braces_for_a_cluster() -> None:
    assert Settings(topic="a").redis_key_name == "devices:{a}"
    assert Settings(topic="a").dead_letter_topic_name == "a.dlq"


# A value that is not the default of each option that only one store uses.
_OF_BACKEND = {
    "redis": {
        "redis_key": "k",
        "windows": "day",
        "window_ttl": "day=1d",
        "window_time_zone": "Europe/Amsterdam",
        "by": "country",
        "time_field": "at",
    },
    "clickhouse": {"table": "t", "map": "a=b", "types": "a=lenient", "evolve": "1", "delivery": "at-least-once"},
}
_OTHER = {"redis": "clickhouse", "clickhouse": "redis"}
_PAIRS = [(backend, name, text) for backend, options in _OF_BACKEND.items() for name, text in options.items()]


def _load(flags: dict[str, Any], environ: dict[str, str], config: Path | None = None) -> None:
    reject_other_backends_options(*load(flags, environ, config))


def test_every_option_of_one_store_is_listed_here() -> None:
    of_backend = {item.name: item.metadata["backend"] for item in fields(Settings) if item.metadata["backend"]}
    assert {name: backend for backend, name, _ in _PAIRS} == {
        name: backend for name, backend in of_backend.items() if not name.endswith(("_url", "_password"))
    }
    assert {name for name in of_backend if name.endswith(("_url", "_password"))} == {
        f"{backend}_{part}" for backend in _OTHER for part in ("url", "password")
    }


@pytest.mark.parametrize(("name", "text"), [pair[1:] for pair in _PAIRS])
def test_both_stores_use_the_options_of_each(name: str, text: str) -> None:
    _load({"backend": "redis,clickhouse", name: [text] if name == "map" else text}, {})


@pytest.mark.parametrize("text", ["clickhouse,redis", "redis,redis", "redis,", "redis, clickhouse", "both"])
def test_only_the_listed_stores_are_accepted(text: str) -> None:
    with pytest.raises(UsageError, match="is not one of redis, clickhouse, redis,clickhouse"):
        _load({"backend": text}, {})


def test_a_file_may_list_both_stores(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text('backend = ["redis", "clickhouse"]')
    assert load({}, {}, file)[0].backends == ("redis", "clickhouse")


@pytest.mark.parametrize(("backend", "name", "text"), _PAIRS)
def test_an_option_of_the_other_store_is_refused_wherever_it_stands(
    backend: str, name: str, text: str, tmp_path: Path
) -> None:
    file = tmp_path / "worker.toml"
    key, _, value = text.partition("=")
    file.write_text(f'[{name}]\n{key} = "{value}"' if name in ("map", "types") else f'{name} = "{text}"')
    sources: list[tuple[dict[str, Any], dict[str, str], Path | None]] = [
        ({name: [text] if name in ("map", "types") else text}, {}, None),
        ({}, {f"WORKER_{name.upper()}": text}, None),
        ({}, {}, file),
    ]
    for flags, environ, config in sources:
        _load({"backend": backend, **flags}, environ, config)
        with pytest.raises(UsageError, match=f"no effect with --backend {_OTHER[backend]}") as caught:
            _load({"backend": _OTHER[backend], **flags}, environ, config)
        assert caught.value.code == ExitCode.USAGE


def test_the_flag_that_leaves_a_store_out_also_leaves_out_what_the_file_says_for_it(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text('backend = "redis,clickhouse"\nby = "country"\ntable = "t"\n[map]\na = "b"')
    for backend, expected in (("clickhouse", ("", "t", {"b": "a"})), ("redis", ("country", "events", {}))):
        settings, origins = load({"backend": backend}, {"WORKER_WINDOWS": "day"}, file)
        reject_other_backends_options(settings, origins)
        assert (settings.by, settings.table, settings.map) == expected
        assert bool(settings.windows) == (backend == "redis")
    with pytest.raises(UsageError, match="--by: it has no effect with --backend clickhouse"):
        _load({"backend": "clickhouse", "by": "country"}, {}, file)


def test_a_flag_of_the_other_store_is_refused_even_with_the_default() -> None:
    for flags in ({"table": "events"}, {"clickhouse_url": "clickhouse://h/d"}):
        with pytest.raises(UsageError, match="use --backend clickhouse"):
            _load(flags, {})
    _load({}, {"WORKER_TABLE": "events"})


def test_a_file_and_the_environment_may_name_both_stores(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text('redis_url = "redis://h/1"\nclickhouse_url = "clickhouse://h/d"')
    for backend in _OTHER:
        _load({"backend": backend}, {"WORKER_REDIS_PASSWORD": "x", "WORKER_CLICKHOUSE_PASSWORD": "y"}, file)


@pytest.mark.parametrize("password", ["alpha@omega", "alpha/omega", "1/omega", "1?omega", "1#omega", "alpha/o@mega"])
@pytest.mark.parametrize(
    ("variable", "scheme"), [("WORKER_REDIS_URL", "redis"), ("WORKER_CLICKHOUSE_URL", "clickhouse")]
)
def test_a_url_whose_password_ends_too_early_is_refused_and_no_part_of_it_is_shown(
    variable: str, scheme: str, password: str
) -> None:
    with pytest.raises(UsageError, match="write @ as %40") as raised:
        load({"topic": "t"}, {variable: f"{scheme}://user:{password}@host/0"})
    assert not re.search("alpha|omega|mega@|1/|1[?]|1#", str(raised.value))
    escaped = f"{scheme}://user:{quote(password, safe='')}@host/0?ssl_keyfile=a@b"
    settings, _ = load({"topic": "t"}, {variable: escaped})
    assert escaped in (settings.redis_url, settings.clickhouse_url)


@pytest.mark.parametrize(
    ("options", "group"),
    [
        ({}, "worker-redis-devices"),
        ({"redis_key": "fleet"}, "worker-redis-fleet"),
        ({"backend": "clickhouse"}, "worker-clickhouse-events"),
        ({"backend": "clickhouse", "table": "fleet_{topic}"}, "worker-clickhouse-fleet"),
        ({"backend": "clickhouse", "table": "shop.orders"}, "worker-clickhouse-shop.orders"),
        ({"backend": "clickhouse", "clickhouse_url": "clickhouse://h/shop"}, "worker-clickhouse-shop.events"),
        ({"backend": "redis,clickhouse"}, "worker-redis-clickhouse-devices-events"),
        ({"backend": "redis,clickhouse", "redis_key": "k", "table": "a.b"}, "worker-redis-clickhouse-k-a.b"),
        ({"group_id": "mine"}, "mine"),
    ],
)
def test_the_default_group_is_of_one_store_and_its_table_or_key(options: dict[str, str], group: str) -> None:
    settings, _ = load({"topic": "t", **options}, {})
    assert settings.group_id == group
    assert settings.for_topic("other").group_id == group
