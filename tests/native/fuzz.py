"""Compare the native decoder with the reference on random bytes: python -m tests.native.fuzz SECONDS [SEED]."""

from __future__ import annotations

import sys
import time
from random import Random, SystemRandom

import worker_native

from tests.native.comparison import Difference, compare
from tests.native.events import any_fields, event, mutate

BASES, PAYLOADS, BATCH = 60, 400, 100


def fuzz(seconds: float, seed: int) -> tuple[int, int]:
    """Return how many payloads were compared and how many of them native code decided; Difference on a difference."""
    random = Random(seed)
    compared = decided = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        fields = any_fields(random)
        decoder, oddness = worker_native.Decoder(fields), random.choice((0.0, 0.02, 0.1, 0.3))
        bases = [event(fields, random, oddness=oddness) for _ in range(BASES)]
        payloads = [
            base if random.random() < 0.6 else mutate(base, bases, random) for base in random.choices(bases, k=PAYLOADS)
        ]
        compared += len(payloads)
        for start in range(0, PAYLOADS, BATCH):  # what a decoder learns from one batch changes no other
            batch = payloads[start : start + BATCH]
            decided += len(batch) - len(compare(decoder, fields, batch))
    return compared, decided


def main(arguments: list[str]) -> int:
    seconds = float(arguments[0]) if arguments else 60
    seed = int(arguments[1]) if len(arguments) > 1 else SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    try:
        compared, decided = fuzz(seconds, seed)
    except Difference as difference:
        print(f"difference: {difference}")
        return 1
    print(f"{compared} payloads compared, {decided} decided natively, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
