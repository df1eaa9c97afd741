"""The topic that `produce` writes to. It is created if missing, and every event sent to it is accounted for.

It waits without limit for brokers that do not answer. Errors that retrying cannot fix raise Fatal.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicCollection
from confluent_kafka.admin import AdminClient, NewTopic

from worker.core.errors import ExitCode, Fatal
from worker.kafka.errors import raise_auth_error
from worker.kafka.properties import client_error

log = logging.getLogger(__name__)

SLICE_S = 0.2  # the longest wait in one call; a signal is noticed this soon
_QUEUE = 200_000  # messages in memory at most: about 50 MB
_REQUEST_S = 10.0
_SILENCE_S = 4.0  # without an answer from the brokers, until the first warning
_REPEAT_S = 30.0
_DRAIN_S = 10.0  # for the events in the queue when it is stopped
_RETRIED = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE)


class Topic:
    """One topic and the producer that writes to it. Every wait ends early once `stop()` is true.

    `sent` events were handed to librdkafka. Each is delivered, failed (`failed` counts them by error) or queued.
    `properties` are librdkafka's and take precedence over those that are set here.
    """

    def __init__(self, name: str, properties: Mapping[str, Any], stop: Callable[[], bool]) -> None:
        self.name = name
        self.sent = 0
        self.failed: Counter[str] = Counter()
        self._servers = properties["bootstrap.servers"]
        self._stop = stop
        self._error: KafkaError | None = None
        self._last_answer = time.monotonic()
        self._last_warning = 0.0
        self._last_delivered = 0
        # librdkafka's log lines about a lost connection come through error_cb too: one warning is enough.
        common = {"log_level": 2, **properties}
        logger = logging.getLogger("worker.librdkafka")
        try:
            self._admin = AdminClient(common, logger=logger)
            self._producer = Producer(
                {
                    "linger.ms": 20,
                    "compression.type": "lz4",
                    "acks": "all",
                    "enable.idempotence": True,
                    "message.timeout.ms": 0,  # an outage is waited out
                    "queue.buffering.max.messages": _QUEUE,
                    "delivery.report.only.error": True,
                    **common,
                },
                on_delivery=self._on_delivery,
                error_cb=self._on_error,
                logger=logger,
            )
        except KafkaException as error:
            raise client_error(error) from None

    @property
    def delivered(self) -> int:
        """Events that the brokers have acknowledged."""
        return self.sent - len(self._producer) - self.failed.total()

    def partitions(self, wanted: int | None) -> int:
        """Return the topic's number of partitions; create it with `wanted` if it is missing. 0 if stopped before.

        Raises Fatal if the topic is missing and `wanted` is None.
        """
        while not self._stop():
            answers = self._admin.describe_topics(TopicCollection([self.name]), request_timeout=_REQUEST_S)
            description = self._await(answers)
            if description is not None:
                count = len(description.partitions)
                if wanted not in (None, count):
                    log.warning("topic %s has %d partitions, not %d; used as it is", self.name, count, wanted)
                return count
            if self._stop() or self._error is not None:
                continue
            if wanted is None:
                raise Fatal(
                    f"topic {self.name} does not exist on {self._servers}: "
                    "name another --topic, or add --partitions 4 to create it"
                )
            new = NewTopic(self.name, num_partitions=wanted, replication_factor=-1)
            self._await(self._admin.create_topics([new], request_timeout=_REQUEST_S))
        return 0

    def send(self, events: Sequence[bytes], partition: int) -> None:
        """Queue events for one partition; wait while it is full. Events left when `stop` is true are not sent."""
        messages: list[dict[str, Any]] = [{"value": event} for event in events]
        while messages:
            queued = self._producer.produce_batch(self.name, messages, partition=partition)
            self.sent += queued
            if queued == len(messages):
                break
            refused = [(message, message.pop("_error")) for message in messages if "_error" in message]
            messages = [message for message, error in refused if error.code() == KafkaError._QUEUE_FULL]
            failed = [error.name() for _, error in refused if error.code() != KafkaError._QUEUE_FULL]
            self.sent += len(failed)
            self.failed.update(failed)
            if messages and self._stop():
                break
            self.wait(SLICE_S / 4)
        self.wait(0)

    def wait(self, seconds: float) -> None:
        """Serve librdkafka's callbacks for `seconds`, or until the first. Raises Fatal if the producer failed."""
        self._producer.poll(seconds)
        delivered = self.delivered
        if delivered == self._last_delivered and len(self._producer):
            self._warn_if_silent(f"{delivered} delivered, {len(self._producer)} waiting")
        else:
            self._last_delivered = delivered
            self._last_answer = time.monotonic()
            self._error = None

    def drain(self, show: Callable[[int], None]) -> None:
        """Wait until every event is delivered or failed. After `stop` it waits _DRAIN_S, then discards the rest."""
        deadline: float | None = None
        while len(self._producer):
            if deadline is None and self._stop():
                deadline = time.monotonic() + _DRAIN_S
            if deadline is not None and time.monotonic() > deadline:
                self._producer.purge()
                self._producer.flush(1)
                return
            self._producer.flush(SLICE_S)  # unlike poll() it does not wait for linger.ms
            self.wait(0)
            show(self.delivered)

    def _await(self, answers: Mapping[str, Future[Any]]) -> Any:
        """Return the answer about the topic; None if the topic is missing, already exists, or no answer came.

        `_error` is set if no answer came.
        """
        answer = answers[self.name]
        while not self._stop():
            self._producer.poll(0)
            try:
                result = answer.result(SLICE_S)
            except FutureTimeoutError:
                self._warn_if_silent("nothing written yet")
            except KafkaException as error:
                return self._handle_answer(error.args[0])
            else:
                self._handle_answer(None)
                return result
        return None

    def _handle_answer(self, error: KafkaError | None) -> None:
        if error is None or error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_ALREADY_EXISTS):
            self._error = None
            self._last_answer = time.monotonic()
            return
        for cause in (self._error, error):
            if cause is not None:
                raise_auth_error(cause)
        if not error.retriable() and error.code() not in _RETRIED:
            raise Fatal(f"Kafka, topic {self.name}: {error.str()}")
        self._error = self._error or error
        self._warn_if_silent("nothing written yet")
        self._producer.poll(SLICE_S)

    def _warn_if_silent(self, state: str) -> None:
        now = time.monotonic()
        if now - self._last_answer > _SILENCE_S and (
            self._last_warning < self._last_answer or now - self._last_warning > _REPEAT_S
        ):
            self._last_warning = now
            reason = self._error.str() if self._error is not None else "no answer"
            log.warning("Kafka at %s does not answer (%s); still trying: %s", self._servers, reason, state)

    def _on_delivery(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self.failed[error.name()] += 1

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            raise Fatal(f"Kafka producer: {error.str()}", code=ExitCode.FAILED)
        self._error = error
