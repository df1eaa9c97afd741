"""`--print-config` and the JSON Schema: the output is the settings in use, is valid, and contains no secret."""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from worker.__main__ import main
from worker.config.export import as_toml, json_schema
from worker.config.field_paths import format_path
from worker.config.settings import Settings, UsageError, default_of
from worker.config.sources import OWNED_PROPERTIES, load
from worker.kafka.properties import property_names

SCHEMA = Draft202012Validator(json_schema())
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=20)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Unset every WORKER_ variable."""
    for variable in [name for name in os.environ if name.startswith("WORKER_")]:
        monkeypatch.delenv(variable)
    return monkeypatch


def test_the_schema_is_valid() -> None:
    Draft202012Validator.check_schema(json_schema())


def test_the_schema_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_every_option_but_secrets_is_in_the_schema() -> None:
    described = json_schema()["properties"]
    assert set(described) == {item.name for item in fields(Settings) if not item.metadata["secret"]}


def test_every_default_fits_the_schema() -> None:
    for item in fields(Settings):
        if not item.metadata["secret"] and default_of(item) not in (None, ""):
            assert list(SCHEMA.iter_errors({item.name: json.loads(json.dumps(default_of(item)))})) == []


@pytest.mark.parametrize(
    "document",
    [
        {"batch_rows": 0},
        {"batch_rows": "7"},
        {"processes": 257},
        {"processes": "many"},
        {"backend": "mysql"},
        {"until_end": "perhaps"},
        {"redis_url": "http://x"},
        {"table": "a b"},
        {"redis_password": "x"},
        {"nonsense": 1},
        {"kafka": {"group.id": "x"}},
        {"kafka": {"debug": []}},
        {"map": {"a": 5}},
        {"map": "a=b"},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(document: dict[str, Any]) -> None:
    assert list(SCHEMA.iter_errors(document))


@given(
    rows=st.integers(1, 10_000_000),
    ratio=st.floats(0, 1),
    processes=st.none() | st.integers(1, 256),
    until_end=st.booleans(),
    text=TEXT,
    columns=st.dictionaries(
        TEXT.filter(bool), st.lists(TEXT.filter(bool), min_size=1, max_size=3).map(format_path), max_size=4
    ),
    properties=st.dictionaries(st.from_regex(r"[a-z]{1,9}\.[a-z]{1,9}", fullmatch=True), TEXT, max_size=3),
)
def test_the_printed_file_loads_to_the_same_settings(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    ratio: float,
    processes: int | None,
    until_end: bool,
    text: str,
    columns: dict[str, str],
    properties: dict[str, str],
) -> None:
    settings = Settings(
        topic="t",
        batch_rows=rows,
        max_bad_ratio=ratio,
        processes=processes,
        until_end=until_end,
        redis_key=text,
        kafka=properties,
        map=columns,
    )
    printed = as_toml(settings, {})
    assert list(SCHEMA.iter_errors(tomllib.loads(printed))) == []
    file = tmp_path_factory.getbasetemp() / "printed.toml"
    file.write_text(printed)
    again, _ = load({}, {}, file)
    assert again == settings


def test_every_option_is_printed_with_its_origin(
    clean_environment: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "worker.toml"
    config.write_text('linger-ms = 9\n[kafka]\n"client.rack" = "a"\n')
    password = tmp_path / "password"
    password.write_text("canary")
    clean_environment.setenv("WORKER_CONFIG", str(config))
    clean_environment.setenv("WORKER_REDIS_KEY", "k")
    clean_environment.setenv("WORKER_REDIS_PASSWORD_FILE", str(password))
    clean_environment.setenv("WORKER_CLICKHOUSE_URL", "clickhouse://u:canary@h/d")
    clean_environment.setenv("WORKER_KAFKA", "# TLS\nsecurity.protocol = SSL\n\nssl.key.password=canary\nclient.id=x")
    assert main(["--batch-rows", "7", "-X", "client.id=y", "--print-config"]) == 0
    printed = capsys.readouterr().out
    lines = {line.partition("#")[0].strip(): line.rpartition("# ")[2] for line in printed.splitlines()}
    assert lines["batch_rows = 7"] == "--batch-rows"
    assert lines['redis_key = "k"'] == "WORKER_REDIS_KEY"
    assert lines["linger_ms = 9"] == f"{config}: linger-ms"
    assert lines['backend = "redis"'] == "default"
    assert lines['"client.rack" = "a"'] == f"{config}: kafka"
    assert lines['"security.protocol" = "SSL"'] == "WORKER_KAFKA"
    assert lines['"client.id" = "y"'] == "-X"
    assert "canary" not in printed
    assert re.search(r'^# redis_password = "\*\*\*" +# WORKER_REDIS_PASSWORD_FILE$', printed, re.MULTILINE)
    assert re.search(
        r'^# clickhouse_url = "clickhouse://u:\*\*\*@h/d" +# WORKER_CLICKHOUSE_URL$', printed, re.MULTILINE
    )
    assert re.search(r'^# "ssl.key.password" = "\*\*\*" +# WORKER_KAFKA$', printed, re.MULTILINE)
    for item in fields(Settings):
        assert re.search(rf"^(# |\[)?{item.name}\b", printed, re.MULTILINE)


def test_the_printed_file_has_no_option_that_is_refused(
    clean_environment: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean_environment.setenv("WORKER_CLICKHOUSE_URL", "clickhouse://h/d")
    assert main(["--print-config"]) == 0
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out)
    assert main(["--config", str(printed), "--print-config"]) == 0


def test_an_invalid_value_is_refused_and_nothing_is_printed(
    clean_environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--batch-rows", "0", "--print-config"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("WORKER_BATCH_ROW", "WORKER_BATCH_ROWS"),
        ("WORKER_TOPICS", "WORKER_TOPIC"),
        ("WORKER_BOOTSTRAP_SERVER", "WORKER_BOOTSTRAP_SERVERS"),
        ("WORKER_REDIS_PASWORD_FILE", "WORKER_REDIS_PASSWORD_FILE"),
    ],
)
def test_a_typo_in_a_variable_is_refused(variable: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"^{variable}: .*did you mean {nearest}"):
        load({}, {variable: "7"})


@pytest.mark.parametrize(
    "variable",
    # Kubernetes sets these for a Service named worker; the last is the tests' own.
    ["WORKER_PORT", "WORKER_PORT_9108_TCP", "WORKER_SERVICE_HOST", "WORKER_SERVICE_PORT", "WORKER_TEST_KAFKA"],
)
def test_other_programs_variables_are_ignored(variable: str) -> None:
    assert load({}, {variable: "tcp://10.0.0.1:9108"})[0] == Settings()


def test_invalid_properties_in_a_variable_are_refused_with_what_to_write() -> None:
    with pytest.raises(UsageError, match=r"WORKER_KAFKA.*one KEY=VALUE per line"):
        load({}, {"WORKER_KAFKA": "security.protocol"})
    with pytest.raises(UsageError, match="WORKER_KAFKA acks cannot be set"):
        load({}, {"WORKER_KAFKA": "acks=1"})


def test_a_secret_property_may_be_in_a_file_that_a_variable_names(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_text("security.protocol=SSL\nssl.key.password=canary\n")
    settings, origins = load({}, {"WORKER_KAFKA_FILE": str(file)})
    assert settings.kafka == {"security.protocol": "SSL", "ssl.key.password": "canary"}
    assert origins["kafka.ssl.key.password"] == "WORKER_KAFKA_FILE"


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux is librdkafka a separate file")
def test_the_list_of_properties_is_that_of_librdkafka(tmp_path: Path) -> None:
    (library,) = Path(confluent_kafka.__file__).parents[1].glob("confluent_kafka.libs/librdkafka*.so*")
    table = tmp_path / "properties.md"
    libc, librdkafka = ctypes.CDLL(None), ctypes.CDLL(str(library))
    libc.fopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(libc.fopen(str(table).encode(), b"w"))
    librdkafka.rd_kafka_conf_properties_show(file)
    libc.fclose(file)
    names = {match[1] for match in re.finditer(r"^([a-z][\w.]+) +\| +[*CP] ", table.read_text(), re.MULTILINE)}
    assert set(property_names()) == {name for name in names if not name.endswith("_cb")}
    assert OWNED_PROPERTIES.keys() <= names
