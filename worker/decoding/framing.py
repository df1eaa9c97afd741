"""The framing of Confluent's serializers: a zero byte, the schema's id as 4 bytes (big-endian), then the body.

Source: docs.confluent.io, "Formats, Serializers, and Deserializers", section "Wire format".
"""

from __future__ import annotations

HEAD_BYTES = 5


def is_framed(payload: bytes) -> bool:
    """Whether a payload begins as a framed one does and has a body."""
    return len(payload) > HEAD_BYTES and schema_id(payload[:HEAD_BYTES]) is not None


def schema_id(head: bytes) -> int | None:
    """Return the schema id of a payload's first HEAD_BYTES bytes; None if they are no frame.

    Ids are positive Java integers: registries answer with other errors than "not found" to those of 32 bits.
    """
    return int.from_bytes(head[1:]) if len(head) == HEAD_BYTES and head[0] == 0 and head[1] < 128 else None


def frame(schema_id: int, body: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4) + body
