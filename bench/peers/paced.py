"""Writes events at a fixed rate and keeps when: BOOTSTRAP TOPIC RATE SECONDS FILE PROBES.

FILE gets three 64-bit numbers a tick: Unix ns just before its events were handed to librdkafka, how many events there
were by then, and its number. With PROBES = 1 the last event of each tick is of a device that was never seen
before (10.0.0.0 + tick), and all others are of one device.
"""

from __future__ import annotations

import sys
import time
from array import array
from typing import Any

from confluent_kafka import Producer

from worker.commands.produce.fleet import Fleet, device_ip

_TICK_S = 0.005


def main() -> None:
    bootstrap, topic, rate, seconds, file, probes = sys.argv[1:]
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": 1,
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "lz4",
        }
    )
    fleet = Fleet(10_000)
    ticks = array("q")
    sent, began = 0, time.monotonic()
    for tick in range(1, int(float(seconds) / _TICK_S) + 1):
        due = round(tick * _TICK_S * float(rate))
        pause = began + tick * _TICK_S - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        if due == sent:
            continue
        now = time.time_ns()
        values = [_event(device_ip(0), now)] * (due - sent) if probes == "1" else fleet.take(due - sent)
        if probes == "1":
            values[-1] = _event(device_ip(tick), now)
        messages: list[dict[str, Any]] = [{"value": value} for value in values]
        while producer.produce_batch(topic, messages, partition=0) < len(messages):
            messages = [message for message in messages if message.pop("_error", None)]
            producer.poll(0.01)
        producer.poll(0)
        sent = due
        ticks.extend((now, sent, tick))
    if producer.flush(60):
        sys.exit("not everything was delivered")
    with open(file, "wb") as out:
        ticks.tofile(out)


def _event(address: str, now_ns: int) -> bytes:
    return b'{"timestamp": %d, "device_ip": "%b", "error_code": 0}' % (now_ns // 1_000_000, address.encode())


main()
