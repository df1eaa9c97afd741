"""What Kafka has of a message beside its payload: key, timestamp, headers; and the payload itself, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from worker.core.records import Decode, Decoded, Field, Message, Reject
from worker.decoding.converters import CONVERT_ERRORS, reject_reason

NO_TIMESTAMP = 0  # the type of a timestamp that a message lacks (librdkafka's RD_KAFKA_TIMESTAMP_NOT_AVAILABLE)


def keys(messages: Sequence[Message], _: Sequence[bytes]) -> list[Any]:
    """Return each message's key; None where it has none."""
    return [message.key() for message in messages]


def timestamps(messages: Sequence[Message], _: Sequence[bytes]) -> list[Any]:
    """Return each message's timestamp in Unix milliseconds; None where it has none."""
    pairs = [message.timestamp() for message in messages]
    return [None if kind == NO_TIMESTAMP else millis for kind, millis in pairs]


def headers(messages: Sequence[Message], _: Sequence[bytes]) -> list[Any]:
    """Return each message's headers by name; of several with the same name the last, as Kafka's `lastHeader`."""
    return [dict(message.headers() or ()) for message in messages]


def header_pairs(messages: Sequence[Message], _: Sequence[bytes]) -> list[Any]:
    """Return each message's headers in their order: name and value of each."""
    return [list(map(list, message.headers() or ())) for message in messages]


def raw_messages(_: Sequence[Message], payloads: Sequence[bytes]) -> list[Any]:
    return list(payloads)


def decode_with_metadata(
    decode: Decode,
    payloads: Sequence[bytes],
    messages: Sequence[Message],
    fields: Sequence[Field],
    metadata: Sequence[Field],
) -> Decoded:
    """Decode the events, then add the columns of `metadata`, which are made of the rows' messages.

    An event whose metadata a column cannot hold is a reject, too.
    """
    decoded = decode(payloads, fields)
    if not metadata:
        return decoded
    rows, sources = payloads, messages
    if decoded.kept is not None:
        rows, sources = [payloads[i] for i in decoded.kept], [messages[i] for i in decoded.kept]
    try:
        columns = [field.convert(_values(field, sources, rows)) for field in metadata]
    except CONVERT_ERRORS:
        rejects = _rejects(payloads, messages, range(len(payloads)) if decoded.kept is None else decoded.kept, metadata)
    else:
        return decoded._replace(columns=(*decoded.columns, *columns))
    rejected = {reject.index for reject in rejects}
    rest = [i for i in range(len(payloads)) if i not in rejected]
    again = decode_with_metadata(decode, [payloads[i] for i in rest], [messages[i] for i in rest], fields, metadata)
    rejects += [reject._replace(index=rest[reject.index]) for reject in again.rejects]
    kept = rest if again.kept is None else [rest[i] for i in again.kept]
    return Decoded(again.columns, kept, again.rows, sorted(rejects))


def _rejects(
    payloads: Sequence[bytes], messages: Sequence[Message], indices: Sequence[int], metadata: Sequence[Field]
) -> list[Reject]:
    """Return a reject for each row whose metadata a column cannot hold."""
    rejects = []
    for i in indices:
        for field in metadata:
            if reason := reject_reason(field.convert, _values(field, [messages[i]], [payloads[i]])):
                rejects.append(Reject(i, reason, field.name))
                break
    return rejects


def _values(field: Field, messages: Sequence[Message], payloads: Sequence[bytes]) -> list[Any]:
    assert field.of_message is not None
    return field.of_message(messages, payloads)
