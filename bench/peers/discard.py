"""The floor in Python: confluent-kafka, tuned, throws every message away. Prints how many it has read."""

from __future__ import annotations

import gc

from confluent_kafka import Consumer

from bench.peers.arguments import arguments, tuned


def main() -> None:
    job = arguments()
    consumer = Consumer(tuned(job))
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
