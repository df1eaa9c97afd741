"""The floor in Python: confluent-kafka, tuned, throws every message away. Prints how many it has read."""

from __future__ import annotations

import gc

from confluent_kafka import Consumer

from bench.peers.arguments import arguments


def main() -> None:
    job = arguments()
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap,
            "group.id": job.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "queued.min.messages": 10_000,
            "queued.max.messages.kbytes": 32_768,
            "fetch.queue.backoff.ms": 1,
            "fetch.min.bytes": 65_536,
            "fetch.wait.max.ms": 50,
        }
    )
    consumer.subscribe([job.topic])
    gc.freeze()
    gc.disable()
    seen, all_of_it = 0, job.count + job.partitions  # the end of a partition comes as a message, once
    while seen < all_of_it:
        seen += len(consumer.consume(1000, 0.1))
    positions = consumer.position(consumer.assignment())
    consumer.close()
    print(sum(max(0, position.offset) for position in positions))


main()
