"""Protobuf: framed payloads → messages → columns of the wanted fields, or events in the form of JSON.

A registry has .proto text, and Google's library reads descriptors: `grpcio-tools` carries the compiler, which runs once
for each schema. The forms are those of Protobuf's JSON mapping, but with the fields' own names and with numbers for
64-bit integers; docs/formats.md has the table.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from operator import attrgetter, itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from worker.core.records import Field
from worker.core.schemas import RegisteredSchema
from worker.decoding import instants, json
from worker.decoding.converters import BadValue
from worker.decoding.framing import HEAD_BYTES
from worker.decoding.json import Unreadable
from worker.decoding.schema_cache import InvalidSchema, ReadEvents

if importlib.util.find_spec("grpc_tools") is None:
    raise ModuleNotFoundError("No module named 'grpc_tools'", name="grpcio-tools")

_FILE = "worker.proto"  # the schema itself; its references have names of their own
_COMPILE_S = 60.0
_MAX_INDEXES = 64  # levels of nested message types that a payload may name

_MAX_COLUMNS = 4096  # pairs of a message type and a field for which a column's reader is kept

ToJson = Callable[[Any], Any]
_ReadColumn = Callable[[list[Any], Field], list[Any]]


def compile_schema(schema: RegisteredSchema) -> ReadEvents:
    """Return the reader of a schema's payloads. Raises InvalidSchema."""
    return _Reader(_message_types(schema))


def message_classes(schema: RegisteredSchema) -> list[type[Message]]:
    """Return the class of each message type of a schema. Raises InvalidSchema."""
    return list(map(GetMessageClass, _message_types(schema)))


def _message_types(schema: RegisteredSchema) -> Sequence[Descriptor]:
    files = _compile({**dict(schema.references), _FILE: schema.text})
    pool = DescriptorPool()
    try:
        for file in files.file:
            pool.Add(file)
        return list(pool.FindFileByName(_FILE).message_types_by_name.values())
    except (TypeError, KeyError) as error:
        raise InvalidSchema(f"its descriptor is refused: {error}") from None


def _compile(sources: dict[str, str]) -> descriptor_pb2.FileDescriptorSet:
    with tempfile.TemporaryDirectory(prefix="worker-proto-") as name:
        directory = Path(name)
        for path, text in sources.items():
            if ".." in PurePosixPath(path).parts or path.startswith("/"):
                raise InvalidSchema(f"it imports {path!r}, which leads out of its directory")
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        # A process of its own: the compiler writes to stderr, and ends the process for some errors.
        arguments = [f"-I{directory}", f"-I{_well_known()}", "--include_imports", f"-o{directory / '.set'}"]
        command = [sys.executable, "-m", "grpc_tools.protoc", *arguments, str(directory / _FILE)]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, errors="replace", timeout=_COMPILE_S
            )
        except subprocess.TimeoutExpired:
            raise InvalidSchema(f"it did not compile within {_COMPILE_S:g} s") from None
        if done.returncode:
            raise InvalidSchema(f"it does not compile: {' | '.join(done.stderr.strip().splitlines())[:500]}")
        return descriptor_pb2.FileDescriptorSet.FromString((directory / ".set").read_bytes())


def _well_known() -> Path:
    """Return the directory with google/protobuf/*.proto."""
    spec = importlib.util.find_spec("grpc_tools")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "_proto"


class _Reader:
    """Reads payloads of one schema: a list of indexes that names the message type, then the message."""

    def __init__(self, types: Sequence[Descriptor]) -> None:
        self._types = types
        self._parsers: dict[bytes, ToJson] = {}  # by indexes

    def __call__(self, payloads: Sequence[bytes], keys: Collection[str] | None) -> list[Any]:
        wanted = None if keys is None else frozenset(keys)
        return [_event(message, wanted) for message in self.parse(payloads)]

    def parse(self, payloads: Sequence[bytes]) -> list[Any]:
        """Return each payload's message, or Unreadable; the JSON value of a message whose type is a well-known one."""
        try:
            end = _indexes_end(payloads[0])
            (indexes,) = {payload[HEAD_BYTES:end] for payload in payloads}
            parse = self._parser(indexes)
            return [parse(payload[end:]) for payload in payloads]
        except _READ_ERRORS:  # also if the payloads are of several message types
            return list(map(self._parse_one, payloads))

    def _parse_one(self, payload: bytes) -> Any:
        try:
            end = _indexes_end(payload)
            return self._parser(payload[HEAD_BYTES:end])(payload[end:])
        except _READ_ERRORS:
            return _UNDECODABLE

    def _parser(self, indexes: bytes) -> Callable[[bytes], Any]:
        if indexes not in self._parsers:
            first, *rest = _indexes(indexes)
            descriptor = self._types[first]
            for index in rest:
                descriptor = descriptor.nested_types[index]
            parse = GetMessageClass(descriptor).FromString
            to_json = _WELL_KNOWN.get(descriptor.full_name)
            self._parsers[indexes] = parse if to_json is None else lambda body: to_json(parse(body))
        return self._parsers[indexes]


_UNDECODABLE = Unreadable("undecodable")
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


def parse(read: ReadEvents, payloads: Sequence[bytes]) -> list[Any]:
    """Return what `field_values` reads of payloads: messages, JSON values, or Unreadable."""
    return read.parse(payloads) if isinstance(read, _Reader) else read(payloads, None)


def _event(message: Any, keys: frozenset[str] | None) -> Any:
    """Return a message as JSON, with all of its fields or those of `keys`, or Unreadable."""
    if not isinstance(message, Message):
        return message
    try:
        return _converter(message.DESCRIPTOR, keys)(message)
    except _READ_ERRORS:
        return _UNDECODABLE


def field_values(messages: list[Any], field: Field) -> list[Any]:
    """Return what `json.field_values` returns for the events of messages, but convert only what the field's path names.

    Raises as `json.field_values` does, and BadValue if Protobuf's JSON has no form for a value.
    """
    kinds = set(map(type, messages))
    if len(kinds) == 1:
        return _values_of(kinds.pop(), messages, field)
    column: list[Any] = [None] * len(messages)
    for kind in kinds:
        indices = [index for index, message in enumerate(messages) if type(message) is kind]
        group = _values_of(kind, [messages[index] for index in indices], field)
        for index, value in zip(indices, group, strict=True):
            column[index] = value
    return column


def _values_of(kind: Any, messages: list[Any], field: Field) -> list[Any]:
    if not issubclass(kind, Message):
        return json.field_values(messages, field)
    try:
        return _column(kind, field.path, field.required)(messages, field)
    except _READ_ERRORS:
        raise BadValue("undecodable") from None


@lru_cache(_MAX_COLUMNS)
def _converter(descriptor: Descriptor, keys: frozenset[str] | None) -> ToJson:
    return _Converters().of(descriptor, keys)


@lru_cache(_MAX_COLUMNS)
def _column(kind: Any, path: tuple[str, ...], required: bool) -> _ReadColumn:
    """Return what reads the values at a path in messages of one type."""
    descriptor, parents = kind.DESCRIPTOR, 0
    for key in path[:-1]:
        step = descriptor.fields_by_name.get(key)
        if step is None or step.is_repeated or step.message_type is None or step.message_type.full_name in _WELL_KNOWN:
            break
        descriptor, parents = step.message_type, parents + 1
    last: Any = descriptor.fields_by_name.get(path[parents])
    if last is None:
        return _no_column
    if len(path) > parents + 1:
        return _column_of_json(
            path[:parents], _Converters().of(descriptor, path[parents : parents + 1]), path[parents:]
        )
    return _column_of_field(path[:parents], last, required)


def _no_column(messages: list[Any], field: Field) -> list[Any]:
    if field.required:
        raise KeyError(field.name)
    return [field.missing] * len(messages)


def _column_of_json(parents: Sequence[str], convert: ToJson, path: tuple[str, ...]) -> _ReadColumn:
    """Return what reads a path that leads on into a map or a well-known type."""

    def read(messages: list[Any], field: Field) -> list[Any]:
        events = [{} if each is None else convert(each) for each in _children(messages, parents, field.required)]
        return json.field_values(events, field._replace(path=path))

    return read


def _column_of_field(parents: Sequence[str], last: FieldDescriptor, required: bool) -> _ReadColumn:
    name, has_presence, to_json = last.name, last.has_presence, _Converters().of_field(last)
    get: ToJson = attrgetter(name)

    def read(messages: list[Any], field: Field) -> list[Any]:
        messages = _children(messages, parents, required)
        if has_presence:
            messages = [each if each is None or each.HasField(name) else _absent(required) for each in messages]
        if required or not (parents or has_presence):
            column = list(map(get, messages))
            return column if to_json is None else list(map(to_json, column))
        to_value = get if to_json is None else lambda message: to_json(get(message))
        return [field.missing if each is None else to_value(each) for each in messages]

    return read


def _children(messages: list[Any], parents: Sequence[str], required: bool) -> list[Any]:
    """Return the message at a path in each message; None where it is absent, or KeyError if it is required."""
    for key in parents:
        messages = [
            each if each is None else getattr(each, key) if each.HasField(key) else _absent(required)
            for each in messages
        ]
    return messages


def _absent(required: bool) -> Any:
    if required:
        raise KeyError
    return None


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
            to_json = self.of_field(field)
            if field.has_presence:
                present.append((field.name, to_json or _same))
            elif to_json:
                always.append((field.name, to_json))
            else:
                plain.append(field.name)
        return convert

    def of_field(self, field: FieldDescriptor) -> ToJson | None:
        """Return the converter of a field's value; None if it is its form in JSON already."""
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            value = self._of_value(entry.fields_by_name["value"])
            if value is None and entry.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING:
                return lambda mapping: {key: mapping[key] for key in mapping}
            value = value or _same
            return lambda mapping: {_key(key): value(mapping[key]) for key in mapping}
        element = self._of_value(field)
        if not field.is_repeated:
            return element
        return _list if element is None else lambda values: list(map(element, values))

    def _of_value(self, field: FieldDescriptor) -> ToJson | None:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return _base64
        if field.enum_type is not None:
            names = {value.number: value.name for value in reversed(field.enum_type.values)}
            return lambda number: names.get(number, number)
        return self.of(field.message_type) if field.message_type is not None else None


_list = itemgetter(slice(None))  # of a repeated field; in two thirds of the time of `list`


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
