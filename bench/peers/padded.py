"""Writes a seeded fleet's events with a further field `pad`. BOOTSTRAP TOPIC EVENTS DEVICES PARTITIONS SEED SIZE"""

from __future__ import annotations

import random
import sys

from confluent_kafka import Producer

from worker.commands.produce.fleet import Fleet

_TAKE = 1000
_POOL = 4 << 20


def main() -> None:
    bootstrap, topic, *numbers = sys.argv[1:]
    events, devices, partitions, seed, size = map(int, numbers)
    fleet = Fleet(devices, seed=seed)
    places = random.Random(seed)
    pool = places.randbytes(_POOL // 2).hex().encode()  # a run of one character would be compressed to nothing
    producer = Producer({"bootstrap.servers": bootstrap, "compression.type": "lz4", "linger.ms": 20, "acks": "all"})
    for turn, start in enumerate(range(0, events, _TAKE)):
        for event in fleet.take(min(_TAKE, events - start)):
            need = max(0, size - len(event) - 10)
            at = places.randrange(_POOL - need)
            pad = pool[at : at + need]
            while True:
                try:
                    producer.produce(topic, event[:-1] + b', "pad": "%b"}' % pad, partition=turn % partitions)
                    break
                except BufferError:
                    producer.poll(0.1)
        producer.poll(0)
    left = producer.flush(120)
    sys.exit(1 if left else 0)


main()
