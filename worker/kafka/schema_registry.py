"""A client of a schema registry's REST interface, as Confluent, Apicurio (ccompat), Karapace and Redpanda have it.

It needs only the standard library. Confluent's own client takes 37 MB of each process and eleven packages.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from worker.config.settings import Settings, UsageError
from worker.core.errors import Fatal, Retryable
from worker.core.schemas import RegisteredSchema

_REASON = "schema_registry"  # of counters.RETRY_REASONS
_TIMEOUT_S = 5.0
_MAX_BYTES = 16 << 20
_NOT_FOUND = range(40401, 40404)  # a registry's own codes: no such subject, version, schema
_CREDENTIALS = (
    "check the user in --schema-registry-url with WORKER_SCHEMA_REGISTRY_PASSWORD, or WORKER_SCHEMA_REGISTRY_TOKEN"
)
_CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"


class LatestSchema(NamedTuple):
    """The newest schema of a subject."""

    id: int
    version: int
    schema: RegisteredSchema


class SchemaRegistry:
    """Raises Fatal for what retrying cannot fix, until the registry has answered once; after that only Retryable."""

    def __init__(self, settings: Settings) -> None:
        if settings.format != "json" and not settings.schema_registry_url:
            raise UsageError(f"--format {settings.format} needs --schema-registry-url")
        parts = urlsplit(settings.schema_registry_url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        self._bases = [f"{parts.scheme}://{host}{parts.path.rstrip('/')}" for host in hosts.split(",")]
        self._where = f"the schema registry at {hosts}"
        self._headers = {"Accept": f"{_CONTENT_TYPE}, application/json", "Content-Type": _CONTENT_TYPE}
        if settings.schema_registry_token:
            self._headers["Authorization"] = f"Bearer {settings.schema_registry_token}"
        elif credentials or settings.schema_registry_password:
            user, _, password = credentials.partition(":")
            secret = f"{unquote(user)}:{settings.schema_registry_password or unquote(password)}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
        self._opener = urllib.request.build_opener(_NoRedirects(), *self._https(settings))
        self._has_answered = False

    @staticmethod
    def _https(settings: Settings) -> list[urllib.request.BaseHandler]:
        if not settings.schema_registry_url.startswith("https:"):
            return []
        ca = settings.schema_registry_ca
        try:
            return [urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca or None))]
        except OSError as error:
            text = error.strerror or error
            raise Fatal(f"--schema-registry-ca {ca}: {text}; name a file of PEM certificates") from None

    def fetch(self, schema_id: int) -> RegisteredSchema | None:
        """Return the schema of an id with all that it refers to; None if the registry does not have it."""
        answer = self._request(f"/schemas/ids/{schema_id}")
        return None if answer is None else self._schema(answer)

    def latest(self, subject: str) -> LatestSchema | None:
        """Return the newest schema of a subject; None if there is no such subject."""
        answer = self._request(f"/subjects/{quote(subject, safe='')}/versions/latest")
        return None if answer is None else LatestSchema(answer["id"], answer["version"], self._schema(answer))

    def register(self, subject: str, kind: str, text: str) -> int:
        """Register a schema, unless the subject has it already, and return its id."""
        path = f"/subjects/{quote(subject, safe='')}/versions"
        answer = self._request(path, {"schemaType": kind, "schema": text})
        if answer is None:
            raise Fatal(f"{self._where} does not accept schemas at {path}")
        return int(answer["id"])

    def _schema(self, answer: dict[str, Any]) -> RegisteredSchema:
        references: dict[str, str] = {}
        self._add_references(answer, references, set())
        return RegisteredSchema(answer.get("schemaType") or "AVRO", answer["schema"], tuple(references.items()))

    def _add_references(self, answer: dict[str, Any], references: dict[str, str], above: set[str]) -> None:
        """Add what a schema refers to, each after what it refers to itself."""
        for reference in answer.get("references") or ():
            name = reference["name"]
            if name in references or name in above:
                continue
            path = f"/subjects/{quote(reference['subject'], safe='')}/versions/{reference['version']}?deleted=true"
            referred = self._request(path)
            if referred is not None:  # else the schema does not compile, and its error names what is missing
                self._add_references(referred, references, above | {name})
                references[name] = referred["schema"]

    def _request(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Return the answer of the first server that gives one; None if it has no such schema, subject or version."""
        for base in self._bases[:-1]:
            try:
                return self._ask(base + path, body)
            except Retryable:
                continue
        return self._ask(self._bases[-1] + path, body)

    def _ask(self, url: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, self._headers)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as response:
                answer = json.loads(response.read(_MAX_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                code, text = _problem(error)
            if code in _NOT_FOUND:
                self._has_answered = True
                return None
            raise self._refused(error.code, text) from None
        except TimeoutError:
            raise self._unavailable(f"nothing within {_TIMEOUT_S:g} s") from None
        except ValueError:
            raise self._permanent("answers, but not in JSON; check the path of --schema-registry-url") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise self._permanent(
                    f"has a certificate that is not trusted ({reason.verify_message}); name its CA's file with "
                    "--schema-registry-ca"
                ) from None
            raise self._unavailable(str(reason) or type(reason).__name__) from None
        if not isinstance(answer, dict):
            raise self._permanent("gives an answer of another kind; check the path of --schema-registry-url")
        self._has_answered = True
        return answer

    def _refused(self, status: int, text: str) -> Fatal | Retryable:
        if status in (401, 403):
            return self._permanent(f"refuses this client ({status}); {_CREDENTIALS}")
        if status in (408, 429) or status >= 500:
            return self._unavailable(f"{status} {text}".rstrip())
        return self._permanent(f"answers {status} {text}".rstrip() + "; check --schema-registry-url")

    def _permanent(self, text: str) -> Fatal | Retryable:
        """Return the error of a configuration: this client's or, once it has worked, the registry's."""
        message = f"{self._where} {text}"
        return Retryable(message, reason=_REASON) if self._has_answered else Fatal(message)

    def _unavailable(self, text: str) -> Retryable:
        return Retryable(f"{self._where} does not answer: {text}", reason=_REASON)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error: the credentials are for the server of the URL only."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _problem(error: urllib.error.HTTPError) -> tuple[int, str]:
    """Return a registry's own error code and text; 0 and nothing if the answer is not a registry's."""
    try:
        answer = json.loads(error.read(_MAX_BYTES))
        return int(answer["error_code"]), str(answer["message"])[:200]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return 0, ""
