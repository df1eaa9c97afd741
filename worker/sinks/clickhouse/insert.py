"""The only way to write rows to ClickHouse: one block of encoded columns, through clickhouse-driver.

The driver connects, authenticates, encrypts, compresses and reads responses. Only its conversion from Python values to
bytes is bypassed; that part of the driver depends on no settings, see `_write_block`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from clickhouse_driver import Client, defines
from clickhouse_driver.block import BlockInfo, RowOrientedBlock
from clickhouse_driver.protocol import ClientPacketTypes
from clickhouse_driver.varint import write_varint
from clickhouse_driver.writer import write_binary_str, write_binary_uint8

_ANSWER_S = 1.0
_ANSWER_PACKETS = 100  # progress and profile events come before the exception

Header = Sequence[tuple[str, str]]
"""The columns of a block: name and type, as ClickHouse writes them."""


class BlockMismatch(Exception):
    """The table's columns are not those that the block was encoded for; nothing was sent."""


def insert_block(
    client: Client, query: str, settings: dict[str, Any], header: Header, rows: int, data: Sequence[bytes]
) -> None:
    """Run `INSERT INTO t (…) VALUES` with one block; when this returns, the server has acknowledged it.

    `data[i]` is column i of the header in the Native format, see `types`. Raises BlockMismatch, the driver's errors,
    OSError and EOFError. After any of them the connection is closed, and the next query opens another one. After any
    but BlockMismatch the rows may have been written.
    """
    with client.disconnect_on_error(query, settings):
        connection = client.connection
        connection.send_query(query)
        connection.send_data(RowOrientedBlock())  # no external tables
        expected = client.receive_sample_block().columns_with_types
        if expected != list(header):
            raise BlockMismatch(_difference(expected, header))
        try:
            if rows:  # a block without rows marks the end
                _write_block(connection, header, rows, data)
                client.receive_profile_events()
            connection.send_data(RowOrientedBlock())  # the end
        except (OSError, EOFError):
            _raise_answer(client)
            raise
        client.receive_profile_events()
        client.receive_end_of_insert_query()


def _write_block(connection: Any, header: Header, rows: int, data: Sequence[bytes]) -> None:
    """Send a block as the driver's Connection.send_data and BlockOutputStream.write do, but with encoded columns."""
    revision = connection.server_info.used_revision
    write_varint(ClientPacketTypes.DATA, connection.fout)
    if revision >= defines.DBMS_MIN_REVISION_WITH_TEMPORARY_TABLES:
        write_binary_str("", connection.fout)
    out = connection.block_out.fout  # compresses, or is connection.fout
    if revision >= defines.DBMS_MIN_REVISION_WITH_BLOCK_INFO:
        BlockInfo().write(out)
    write_varint(len(header), out)
    write_varint(rows, out)
    for (name, kind), column in zip(header, data, strict=True):
        write_binary_str(name, out)
        write_binary_str(kind, out)
        if revision >= defines.DBMS_MIN_REVISION_WITH_CUSTOM_SERIALIZATION:
            write_binary_uint8(0, out)  # every value is present: not sparse
        out.write(column)
    connection.block_out.finalize()


def _raise_answer(client: Client) -> None:
    """Raise the exception that the server sent before it closed the connection, if it did.

    A server that refuses a block, for instance for its memory limit, does not read the rest. The client learns that
    by a reset connection while it still sends; what the server said is in the receive buffer.
    """
    with suppress(OSError, EOFError):
        client.connection.socket.settimeout(_ANSWER_S)
        for _ in range(_ANSWER_PACKETS):
            client.receive_packet()


def _difference(expected: Header, header: Header) -> str:
    for (name, kind), (encoded_name, encoded_kind) in zip(expected, header, strict=False):
        if name != encoded_name:
            return f"it takes the column {name} where {encoded_name} was to be sent"
        if kind != encoded_kind:
            return f"its column {name} is {kind}, no longer {encoded_kind}"
    return f"it takes {len(expected)} columns, not {len(header)}"
