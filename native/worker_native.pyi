"""The optional native part of kafka-ingest-worker.

The reference of its decoder is `worker.decoding`: for each payload native code decides the same, or nothing.
"""

from collections.abc import Sequence
from typing import Any

__version__: str

class Decoder:
    """A plan: which value of an event goes into which column.

    The column buffers keep their size between calls. A Decoder must not be used by two threads at once.
    """

    def __new__(cls, fields: Sequence[tuple[Sequence[str], str, bool]]) -> Decoder:
        """Take each field's path, target and whether it is required; ValueError if a target is not supported.

        A target is a ClickHouse type (not all are supported), `devices` (strings), or `identities` (strings, integers).
        """

    def decode(self, payloads: Sequence[bytes] | Messages) -> tuple[list[tuple[int, int, tuple[Any, ...]]], list[int]]:
        """Return runs of decided payloads, and the indices of the undecided ones between them, all ascending.

        A run is (start, stop, parts): consecutive payloads of which each is a row, and for each field what the
        reference's `Field.convert` returns for their values, with bytes in place of its arrays: bytes; for Nullable(T)
        the tuple (mask, values); for Array(T) and Map(K, V) the tuples (sizes, values) and (sizes, keys, values), where
        sizes is an array("Q"), as Codec.join needs it; for Tuple a tuple. For `devices` and `identities` it is the
        bytes of a String column: each after its length.
        An undecided payload may be valid or not: the reference decodes it; so are tombstones. The GIL is released
        meanwhile. Raises RuntimeError once the messages were released.
        """

def supports(target: str) -> bool:
    """Return whether a Decoder can have a field with this target."""

def pfadd_commands(key: bytes, parts: Sequence[bytes | list[str]], elements: int) -> list[bytes]:
    """Return PFADD commands in RESP that add the distinct devices of all parts, at most `elements` in each.

    A part is bytes, as a Decoder makes them (ValueError for any other form), or a list of strings. Without devices
    there is no command.
    """

class Messages:
    """Consecutive messages of one partition. They pin whole fetch buffers: release them soon.

    `payload`, `key`, `headers`, `timestamp` and `slice` raise RuntimeError once the messages were released, by
    `release` or by `Reader.close`, and IndexError where there is no such message. All else stays readable.
    """

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def end(self) -> int:
        """The offset after the last message."""

    @property
    def timestamp_ms(self) -> int:
        """Unix time of the first message; -1: it has none."""

    @property
    def size(self) -> int:
        """Bytes of all payloads."""

    @property
    def tombstones(self) -> int:
        """Number of messages without a payload."""

    def __len__(self) -> int: ...
    def offsets(self) -> Sequence[int]:
        """Return the offsets, ascending: a range if there are no gaps between them, else a list."""

    def payload(self, index: int) -> bytes | None: ...
    def key(self, index: int) -> bytes | None: ...
    def headers(self, index: int) -> list[tuple[str, bytes | None]]:
        """Return names and values in their order. Invalid UTF-8 in a name is replaced."""

    def timestamp(self, index: int) -> tuple[int, int]:
        """Return type and Unix time in ms, as `confluent_kafka.Message.timestamp()` does."""

    def slice(self, start: int, stop: int) -> Messages:
        """Return messages [start, stop). They share the memory, which is freed when all that share it are released."""

    def release(self) -> None:
        """Give up the messages."""

class Reader:
    """Reads partitions of a consumer in runs of messages, without a Python object for each.

    The consumer stays the member of the group: `Consumer.poll(0)` serves its callbacks and returns errors of the whole
    client, and `pause`, `seek` and `commit` work as ever. Close the reader before the consumer: `Consumer.close` waits
    for ever while a partition is attached or a message alive. A reader that is garbage collected is closed. Threads may
    share a reader, but none may close the consumer while another one is in a call of its reader.
    """

    def __new__(cls, consumer: object, library: str) -> Reader:
        """Make a reader of a `confluent_kafka.Consumer`. `library` is the path of the librdkafka that it uses.

        Raises ValueError, with the reason, where the consumer cannot be read.
        """

    def attach(self, topic: str, partition: int) -> None:
        """Read a partition from now on; best called before `assign`, or else `poll` may return its first messages.

        Call it at every assignment. Nobody gets the messages of a partition that was attached before and is assigned
        again without it: not even the consumer. Raises ValueError for what is no partition, RuntimeError once closed.
        """

    def detach(self, topic: str, partition: int) -> None:
        """Leave a partition to the consumer; at every revocation. What was fetched before still comes from `read`.

        Does nothing for a partition that is not attached, nor once the reader is closed.
        """

    def read(self, count: int, timeout_ms: int) -> tuple[list[Messages], list[tuple[str, int, int, int, str]]]:
        """Wait up to `timeout_ms` for `count` messages and error events together, without the GIL and uninterrupted.

        Returns runs of messages, in the order read, and events: topic, partition, error code, offset, text. It counts
        as polling for max.poll.interval.ms. Raises RuntimeError once the reader or the consumer is closed.
        """

    def close(self) -> None:
        """Free all messages of this reader, also those still held, and leave the partitions to the consumer.

        Messages that were fetched and not read are lost to it: to continue with the consumer, assign or seek.
        """
