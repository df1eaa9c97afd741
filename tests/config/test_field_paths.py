"""The field that fills each column: a flag, a variable and a TOML table mean the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config.field_paths import columns, format_path, parse_element_path, parse_path
from worker.config.settings import UsageError
from worker.config.sources import load


@given(st.lists(st.text(min_size=1), min_size=1))
def test_any_keys_can_be_written_as_a_path(keys: list[str]) -> None:
    assert parse_path(format_path(keys)) == tuple(keys)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("status", ("status",)),
        ("request.user.id", ("request", "user", "id")),
        (r"k8s\.io/name.x", ("k8s.io/name", "x")),
        (r"back\\slash", ("back\\slash",)),
    ],
)
def test_a_path_is_keys_separated_by_dots(text: str, keys: tuple[str, ...]) -> None:
    assert parse_path(text) == keys


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "a\\"])
def test_an_invalid_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="keys separated by dots"):
        parse_path(text)


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("labels[].name", [("labels",), ("name",)]),
        ("a.tags[]", [("a", "tags"), ()]),
        (r"a[].b\.c[].d.e", [("a",), ("b.c",), ("d", "e")]),
        ("a.b", [("a", "b")]),
        (r"php\[].x", [("php[]", "x")]),
        ("a[]b.c", [("a[]b", "c")]),
    ],
)
def test_a_path_of_map_may_go_over_the_elements_of_arrays(text: str, paths: list[tuple[str, ...]]) -> None:
    assert parse_element_path(text) == paths


@pytest.mark.parametrize("text", ["a[]", "a[].b", "[]"])
def test_other_paths_may_not(text: str) -> None:
    with pytest.raises(ValueError, match="key"):
        parse_path(text)
    with pytest.raises(UsageError, match="--device-field"):
        load({"device_field": text}, {})
    with pytest.raises(UsageError, match="--map"):
        load({"map": ["[].a=x"]}, {})


def test_a_path_over_elements_in_every_source(tmp_path: Path) -> None:
    config = tmp_path / "worker.toml"
    config.write_text('[map]\n"labels[].name" = "a"\n"labels[]".color = "b"\n[map.issue]\n"tags[]" = "c"\n')
    expected = {"a": "labels[].name", "b": "labels[].color", "c": r"issue.tags\[]"}
    assert load({}, {}, config)[0].map == expected
    assert load({"map": [f"{name}={column}" for column, name in expected.items()]}, {})[0].map == expected


def test_flag_variable_and_file_mean_the_same(tmp_path: Path) -> None:
    config = tmp_path / "worker.toml"
    config.write_text('[map]\nrequest.user.id = "user"\ntime = ["at", "day"]\n"a\\\\.b" = "c"\n')
    expected = {"user": "request.user.id", "at": "time", "day": "time", "c": r"a\.b"}
    texts = [f"{name}={column}" for column, name in expected.items()]
    for flags, environ, file in (
        ({"map": texts}, {}, None),
        ({}, {"WORKER_MAP": ",".join(texts)}, None),
        ({}, {}, config),
    ):
        assert load({"topic": "t", **flags}, environ, file)[0].map == expected


def test_a_flag_overrides_one_column_and_leaves_the_others(tmp_path: Path) -> None:
    config = tmp_path / "worker.toml"
    config.write_text('[map]\na = "x"\nb = "y"\n')
    settings, origins = load({"map": ["c=x"]}, {"WORKER_MAP": "d=z"}, config)
    assert settings.map == {"x": "c", "y": "b", "z": "d"}
    assert origins["map"] == "--map"


@pytest.mark.parametrize("text", ["a", "=a", "a=", "", "a..b=c"])
def test_an_invalid_pair_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(UsageError, match=r"--map: .*such as request\.user\.id"):
        load({"map": [text]}, {})


def test_one_column_cannot_have_two_fields_but_one_field_may_fill_two_columns() -> None:
    assert columns(["a=x", "a=y", "a=x"]) == {"x": "a", "y": "a"}
    with pytest.raises(UsageError, match=r"--map: .*column x cannot have two fields, a and b"):
        load({"map": ["a=x", "b=x"]}, {})


def test_an_invalid_table_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "worker.toml"
    for text in ("map = 5", "[map]\na.b = 5", '[map]\na = [""]'):
        config.write_text(text)
        with pytest.raises(UsageError, match="write"):
            load({}, {}, config)


@pytest.mark.parametrize("text", ["a.", "."])
def test_the_counted_field_is_a_path(text: str) -> None:
    with pytest.raises(UsageError, match="--device-field"):
        load({"device_field": text}, {})
