"""Protobuf: framed payloads → messages → columns of the wanted fields, or events in the form of JSON.

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
from functools import lru_cache, partial
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
from worker.decoding.framed import read_groups
from worker.decoding.framing import HEAD_BYTES
from worker.decoding.json import ReadField, Unreadable
from worker.decoding.schema_cache import InvalidSchema, ReadEvents

if importlib.util.find_spec("grpc_tools") is None:
    raise ModuleNotFoundError("No module named 'grpc_tools'", name="grpcio-tools")

_FILE = "worker.proto"  # the schema itself; its references have names of their own
_COMPILE_S = 60.0
_MAX_INDEXES = 64  # levels of nested message types that a payload may name

_MAX_COLUMNS = 4096  # paths in message types whose readers are kept

ToJson = Callable[[Any], Any]


def compile_schema(schema: RegisteredSchema) -> _Reader:
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
        self._parsers: dict[tuple[int, ...], ToJson] = {}  # by indexes

    def __call__(self, payloads: Sequence[bytes], keys: Collection[str] | None) -> list[Any]:
        wanted = None if keys is None else frozenset(keys)
        return [_event(message, wanted) for message in self.parse(payloads)]

    def parse(self, payloads: Sequence[bytes]) -> list[Any]:
        """Return each payload's message, or Unreadable; the JSON value of a message whose type is a well-known one."""
        try:
            indexes, end = _indexes(payloads[0])
            (_,) = {payload[HEAD_BYTES:end] for payload in payloads}
            parse = self._parser(indexes)
            return [parse(payload[end:]) for payload in payloads]
        except _READ_ERRORS:  # also if the payloads are of several message types
            return list(map(self._parse_one, payloads))

    def _parse_one(self, payload: bytes) -> Any:
        try:
            indexes, end = _indexes(payload)
            return self._parser(indexes)(payload[end:])
        except _READ_ERRORS:
            return _UNDECODABLE

    def _parser(self, indexes: tuple[int, ...]) -> ToJson:
        if indexes not in self._parsers:
            kind = self.message_class(indexes)
            to_json = _WELL_KNOWN.get(kind.DESCRIPTOR.full_name)
            self._parsers[indexes] = (lambda body: to_json(kind.FromString(body))) if to_json else kind.FromString
        return self._parsers[indexes]

    def message_class(self, indexes: tuple[int, ...]) -> Any:
        """Return the class of a message type. Raises IndexError if there is no such type."""
        first, *rest = indexes
        descriptor = self._types[first]
        for index in rest:
            descriptor = descriptor.nested_types[index]
        return GetMessageClass(descriptor)


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


def _indexes(payload: bytes) -> tuple[tuple[int, ...], int]:
    """Return a payload's list of indexes, which begins with its length, and the position after it.

    The indexes are the message type in the file, then the one nested in it, and so on.
    """
    if payload[HEAD_BYTES] == 0:  # nearly always
        return (0,), HEAD_BYTES + 1
    count, at = _varint(payload, HEAD_BYTES)
    if count > _MAX_INDEXES:
        raise ValueError("no list of indexes")
    indexes: list[int] = []
    for _ in range(count):
        index, at = _varint(payload, at)
        indexes.append(index)
    return tuple(indexes), at


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
    """Return what `json.field_values` returns for the events of messages; only the field's path is converted.

    Raises as `json.field_values` does, and BadValue for a value that has no form in JSON.
    """
    try:
        return read_groups(messages, set(map(type, messages)), type, partial(_values_of_kind, field))
    except _READ_ERRORS:
        raise BadValue("undecodable") from None


def _values_of_kind(field: Field, kind: Any, messages: list[Any]) -> list[Any]:
    read = _column(kind.DESCRIPTOR, field.path) if issubclass(kind, Message) else json.field_values
    return read(messages, field)


@lru_cache(_MAX_COLUMNS)
def _converter(descriptor: Descriptor, keys: frozenset[str] | None) -> ToJson:
    return _Converters().of(descriptor, keys)


@lru_cache(_MAX_COLUMNS)
def _column(descriptor: Descriptor, path: tuple[str, ...]) -> ReadField:
    """Return what reads the values at a path in messages of one type; None stands for an absent message."""
    name, *rest = path
    member: Any = descriptor.fields_by_name.get(name)
    if member is None:
        return lambda messages, field: json.field_values([{}], field) * len(messages)
    if not rest:
        return _member_column(member, _Converters().of_field(member))
    kind = member.message_type
    if kind is None or member.is_repeated or kind.full_name in _WELL_KNOWN:
        convert = _converter(descriptor, frozenset((name,)))
        return lambda messages, field: json.field_values(
            [{} if each is None else convert(each) for each in messages], field._replace(path=path)
        )
    child, read = _member_column(member, None), _column(kind, tuple(rest))
    return lambda messages, field: read(child(messages, field._replace(missing=None)), field)


def _member_column(member: FieldDescriptor, to_json: ToJson | None) -> ReadField:
    name, has_presence = member.name, member.has_presence
    get: ToJson = attrgetter(name)
    value = get if to_json is None else lambda message: to_json(get(message))

    def read(messages: list[Any], field: Field) -> list[Any]:
        if not field.required:
            return [
                field.missing if each is None or (has_presence and not each.HasField(name)) else value(each)
                for each in messages
            ]
        if has_presence and False in [each.HasField(name) for each in messages]:
            raise KeyError(name)
        column = map(get, messages)
        return list(column if to_json is None else map(to_json, column))

    return read


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
