"""Protobuf: framed payloads → events in the form of JSON; each field of a message type has a converter of its own.

A registry has .proto text, or a descriptor in base64, as Confluent's serializer for Python registers it. Google's
library reads descriptors: `grpcio-tools` carries the compiler, which runs once for each schema. The forms are those of
Protobuf's JSON mapping, but with the fields' own names and with numbers for 64-bit integers; docs/formats.md has the
table.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from worker.core.schemas import RegisteredSchema
from worker.decoding import instants
from worker.decoding.framing import HEAD_BYTES
from worker.decoding.json import Unreadable
from worker.decoding.schema_cache import InvalidSchema, ReadEvents

if importlib.util.find_spec("grpc_tools") is None:
    raise ModuleNotFoundError("No module named 'grpc_tools'", name="grpcio-tools")

_FILE = "worker.proto"  # the schema itself; its references have names of their own
_COMPILE_S = 60.0
_MAX_INDEXES = 64  # levels of nested message types that a payload may name

ToJson = Callable[[Any], Any]
_ReadMessage = tuple[Callable[[bytes], Any], ToJson]  # bytes → message, message → event


def compile_schema(schema: RegisteredSchema) -> ReadEvents:
    """Return the reader of a schema's payloads. Raises InvalidSchema."""
    files = _compile({**dict(schema.references), _FILE: schema.text})
    pool = DescriptorPool()
    try:
        for file in files.file:
            pool.Add(file)
        return _Reader(pool.FindFileByName(_FILE).message_types_by_name.values())
    except (TypeError, KeyError) as error:
        raise InvalidSchema(f"its descriptor is refused: {error}") from None


def _compile(sources: dict[str, str]) -> descriptor_pb2.FileDescriptorSet:
    with tempfile.TemporaryDirectory(prefix="worker-proto-") as name:
        directory = Path(name)
        descriptors = descriptor_pb2.FileDescriptorSet()
        for path, text in sources.items():
            if ".." in PurePosixPath(path).parts or path.startswith("/"):
                raise InvalidSchema(f"it imports {path!r}, which leads out of its directory")
            if descriptor := _descriptor(path, text):
                descriptors.file.append(descriptor)
                continue
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        # A process of its own: the compiler writes to stderr, and ends the process for some errors.
        (directory / ".descriptors").write_bytes(descriptors.SerializeToString())
        arguments = [f"-I{directory}", f"-I{_well_known()}", "--include_imports", f"-o{directory / '.set'}"]
        arguments += ["--descriptor_set_in=.descriptors"] if descriptors.file else []
        command = [sys.executable, "-m", "grpc_tools.protoc", *arguments, _FILE]
        try:
            done = subprocess.run(
                command,
                cwd=directory,
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_COMPILE_S,
            )
        except subprocess.TimeoutExpired:
            raise InvalidSchema(f"it did not compile within {_COMPILE_S:g} s") from None
        if done.returncode:
            raise InvalidSchema(f"it does not compile: {' | '.join(done.stderr.strip().splitlines())[:500]}")
        return descriptor_pb2.FileDescriptorSet.FromString((directory / ".set").read_bytes())


def _descriptor(path: str, text: str) -> descriptor_pb2.FileDescriptorProto | None:
    """Return the descriptor that a registry has in base64, by the name that imports use; None for .proto text."""
    try:
        descriptor = descriptor_pb2.FileDescriptorProto.FromString(b64decode(text, validate=True))
    except (ValueError, DecodeError):
        return None
    descriptor.name = path
    return descriptor if text else None


def _well_known() -> Path:
    """Return the directory with google/protobuf/*.proto."""
    spec = importlib.util.find_spec("grpc_tools")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "_proto"


class _Reader:
    """Reads payloads of one schema: a list of indexes that names the message type, then the message."""

    def __init__(self, types: Iterable[Descriptor]) -> None:
        self._types = list(types)
        self._readers: dict[Collection[str] | None, dict[bytes, _ReadMessage]] = {}  # by keys and indexes

    def __call__(self, payloads: Sequence[bytes], keys: Collection[str] | None) -> list[Any]:
        keys = None if keys is None else frozenset(keys)
        readers = self._readers.setdefault(keys, {})
        events: list[Any] = []
        for payload in payloads:
            try:
                end = HEAD_BYTES + 1 if payload[HEAD_BYTES] == 0 else _indexes_end(payload)
                reader = readers.get(payload[HEAD_BYTES:end])
                if reader is None:
                    reader = readers[payload[HEAD_BYTES:end]] = self._reader(payload[HEAD_BYTES:end], keys)
                parse, to_json = reader
                events.append(to_json(parse(payload[end:])))
            except _READ_ERRORS:
                events.append(Unreadable("undecodable"))
        return events

    def _reader(self, indexes: bytes, keys: Collection[str] | None) -> _ReadMessage:
        first, *rest = _indexes(indexes)
        descriptor = self._types[first]
        for index in rest:
            descriptor = descriptor.nested_types[index]
        return GetMessageClass(descriptor).FromString, _Converters().of(descriptor, keys)


# json_format.Error: a value that JSON cannot have, such as NaN in a Struct.
_READ_ERRORS = (DecodeError, IndexError, ValueError, RecursionError, json_format.Error)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a zigzag number and the position after it. Raises IndexError, or ValueError if it is no index."""
    number = 0
    for shift in range(0, 35, 7):
        byte = data[at]
        number |= (byte & 127) << shift
        at += 1
        if byte < 128:
            break
    if byte > 127 or number & 1:
        raise ValueError("no index")
    return number >> 1, at


def _indexes_end(payload: bytes) -> int:
    """Return the position after the list of indexes, which begins with its length."""
    count, at = _varint(payload, HEAD_BYTES)
    if count > _MAX_INDEXES:
        raise ValueError("no list of indexes")
    for _ in range(count):
        _, at = _varint(payload, at)
    return at


def _indexes(data: bytes) -> list[int]:
    """Return the indexes of a list: the message type in the file, then the one nested in it, and so on."""
    count, at = _varint(data, 0)
    indexes: list[int] = []
    for _ in range(count):
        index, at = _varint(data, at)
        indexes.append(index)
    return indexes or [0]


class _Converters:
    """Converters of message types; a type that contains itself refers to its own."""

    def __init__(self) -> None:
        self._by_type: dict[str, ToJson] = {}

    def of(self, descriptor: Descriptor, keys: Collection[str] | None = None) -> ToJson:
        """Return the converter of a message type, with all of its fields or those of `keys`."""
        if descriptor.full_name in _WELL_KNOWN:
            return _WELL_KNOWN[descriptor.full_name]
        if keys is None and descriptor.full_name in self._by_type:
            return self._by_type[descriptor.full_name]
        plain: list[str] = []
        always: list[tuple[str, ToJson]] = []
        present: list[tuple[str, ToJson]] = []

        def convert(message: Any) -> dict[str, Any]:
            event = {name: getattr(message, name) for name in plain}
            for name, to_json in always:
                event[name] = to_json(getattr(message, name))
            for name, to_json in present:
                if message.HasField(name):
                    event[name] = to_json(getattr(message, name))
            return event

        if keys is None:
            self._by_type[descriptor.full_name] = convert
        for field in descriptor.fields:
            if keys is not None and field.name not in keys:
                continue
            to_json = self._of_field(field)
            if field.has_presence:
                present.append((field.name, to_json or _same))
            elif to_json:
                always.append((field.name, to_json))
            else:
                plain.append(field.name)
        return convert

    def _of_field(self, field: FieldDescriptor) -> ToJson | None:
        """Return the converter of a field's value; None if it is its form in JSON already."""
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            value = self._of_value(entry.fields_by_name["value"]) or _same
            return lambda mapping: {_key(key): value(mapping[key]) for key in mapping}
        element = self._of_value(field)
        if not field.is_repeated:
            return element
        return list if element is None else lambda values: list(map(element, values))

    def _of_value(self, field: FieldDescriptor) -> ToJson | None:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return _base64
        if field.enum_type is not None:
            names = {value.number: value.name for value in reversed(field.enum_type.values)}
            return lambda number: names.get(number, number)
        return self.of(field.message_type) if field.message_type is not None else None


def _same(value: Any) -> Any:
    return value


def _key(key: Any) -> str:
    return key if type(key) is str else str(key).lower()  # true and false


def _base64(value: bytes) -> str:
    return b64encode(value).decode()


_nanos = instants.timestamp(9, "Z")
_WELL_KNOWN: dict[str, ToJson] = {
    "google.protobuf.Timestamp": lambda message: _nanos(message.seconds * 10**9 + message.nanos),
    **{
        f"google.protobuf.{name}": json_format.MessageToDict
        for name in ("Duration", "Struct", "Value", "ListValue", "FieldMask")
    },
    **{
        f"google.protobuf.{name}Value": lambda message: message.value
        for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String")
    },
    "google.protobuf.BytesValue": lambda message: _base64(message.value),
}
