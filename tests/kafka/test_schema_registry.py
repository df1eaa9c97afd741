"""The client of a schema registry: credentials, TLS, answers of other servers, references."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import make_certificates
from tests.support.served import Answers
from worker.config.settings import Settings
from worker.core.errors import Fatal, Retryable
from worker.core.schemas import RegisteredSchema
from worker.kafka.schema_registry import SchemaRegistry
from worker.local import Server


def registry_of(answers: Answers, url: str = "", **options: Any) -> SchemaRegistry:
    return SchemaRegistry(
        Settings(format="avro", schema_registry_url=url or f"http://127.0.0.1:{answers.port}", **options)
    )


@pytest.fixture
def answers() -> Iterator[Answers]:
    served = Answers()
    yield served
    served.stop()


SCHEMA = {"schema": '"string"'}
PATH = "/schemas/ids/1"


def test_a_schema_of_avro_has_no_kind_and_a_missing_one_is_none(answers: Answers) -> None:
    answers.by_path[PATH] = (200, SCHEMA)
    registry = registry_of(answers)
    assert registry.fetch(1) == RegisteredSchema("AVRO", '"string"')
    assert registry.fetch(2) is None


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("http://us%40er@127.0.0.1:{port}", {"schema_registry_password": "pa:ss"}, "Basic us@er:pa:ss"),
        ("http://user:p%3Aw@127.0.0.1:{port}", {}, "Basic user:p:w"),
        ("http://127.0.0.1:{port}", {"schema_registry_token": "t0ken"}, "Bearer t0ken"),
    ],
)
def test_credentials(answers: Answers, url: str, options: dict[str, str], expected: str) -> None:
    answers.by_path[PATH] = (200, SCHEMA)
    assert registry_of(answers, url.format(port=answers.port), **options).fetch(1)
    kind, _, value = answers.headers[0]["Authorization"].partition(" ")
    assert f"{kind} {base64.b64decode(value).decode() if kind == 'Basic' else value}" == expected


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_fatal_at_first_and_an_outage_later(answers: Answers, status: int) -> None:
    answers.by_path[PATH] = (status, {})
    registry = registry_of(answers, schema_registry_token="secret")
    with pytest.raises(Fatal, match="refuses this client") as raised:
        registry.fetch(1)
    assert "WORKER_SCHEMA_REGISTRY_PASSWORD" in str(raised.value)
    assert "secret" not in str(raised.value)
    assert registry.fetch(2) is None
    with pytest.raises(Retryable, match="refuses this client"):
        registry.fetch(1)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((404, b"<html>nothing here</html>"), "answers 404"),
        ((404, {"error_code": 404, "message": "HTTP 404"}), "answers 404 HTTP 404"),
        ((200, b"<html>hello</html>"), "not in JSON"),
        ((200, []), "another kind"),
        ((302, b""), "answers 302"),
    ],
)
def test_a_server_that_is_no_registry_makes_no_dead_letters(answers: Answers, answer: Any, error: str) -> None:
    answers.by_path[PATH] = answer
    with pytest.raises(Fatal, match=error):
        registry_of(answers).fetch(1)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_server_errors_are_waited_for(answers: Answers, status: int) -> None:
    answers.by_path[PATH] = (status, b"busy")
    with pytest.raises(Retryable, match=f"does not answer: {status}") as raised:
        registry_of(answers).fetch(1)
    assert raised.value.reason == "schema_registry"


def test_the_next_server_is_asked_where_one_does_not_answer(answers: Answers) -> None:
    answers.by_path["/api/schemas/ids/1"] = (200, SCHEMA)
    assert registry_of(answers, f"http://127.0.0.1:1,127.0.0.1:{answers.port}/api").fetch(1)
    with pytest.raises(Retryable, match="refused"):
        registry_of(answers, "http://127.0.0.1:1,127.0.0.1:2").fetch(1)


def test_each_reference_comes_after_those_that_it_needs_itself(answers: Answers) -> None:
    def reference(name: str) -> dict[str, Any]:
        return {"name": name, "subject": f"s/{name}", "version": 1}

    answers.by_path[PATH] = (200, {**SCHEMA, "schemaType": "PROTOBUF", "references": [reference("a"), reference("b")]})
    for name, needs in {"a": ["b"], "b": ["c", "a", "gone"], "c": []}.items():
        answers.by_path[f"/subjects/s%2F{name}/versions/1"] = (
            200,
            {"schema": f"text of {name}", "references": list(map(reference, needs))},
        )
    schema = registry_of(answers).fetch(1)
    assert schema is not None
    assert schema.references == (("c", "text of c"), ("b", "text of b"), ("a", "text of a"))


def test_tls_with_a_ca_of_ones_own(answers: Answers, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.chain)
    answers.server.socket = context.wrap_socket(answers.server.socket, server_side=True)
    answers.by_path[PATH] = (200, SCHEMA)
    url = f"https://127.0.0.1:{answers.port}"
    assert registry_of(answers, url, schema_registry_ca=str(certificates.authority)).fetch(1)
    with pytest.raises(Fatal, match=r"not trusted .* --schema-registry-ca"):
        registry_of(answers, url, schema_registry_ca=str(certificates.unrelated)).fetch(1)
    with pytest.raises(Fatal, match=r"--schema-registry-ca .*nowhere.pem: No such file"):
        registry_of(answers, url, schema_registry_ca=str(tmp_path / "nowhere.pem"))


def test_a_real_registry(schema_registry: Server) -> None:
    registry = SchemaRegistry(Settings(format="avro", schema_registry_url=schema_registry.address))
    text = json.dumps({"type": "record", "name": "E", "fields": [{"name": "a", "type": "int"}]})
    schema_id = registry.register("a/b-value", "AVRO", text)
    assert registry.register("a/b-value", "AVRO", text) == schema_id
    assert registry.fetch(schema_id) == RegisteredSchema("AVRO", text)
    latest = registry.latest("a/b-value")
    assert latest is not None
    assert (latest.id, latest.version, latest.schema.text) == (schema_id, 1, text)
    assert registry.latest("nothing-value") is None
    assert registry.fetch(2**31 - 1) is None
