"""A minute of random events and broken ones: `make fuzz` runs it as long as one likes."""

from __future__ import annotations

from random import SystemRandom

import pytest

from tests.native.fuzz import fuzz

SECONDS = 60


@pytest.mark.slow
def test_native_code_and_the_reference_decode_random_bytes_alike() -> None:
    seed = SystemRandom().randrange(1 << 32)
    print(f"python -m tests.native.fuzz {10 * SECONDS} {seed}")  # shown if the test fails: draws the same payloads
    compared, decided = fuzz(SECONDS, seed)
    assert decided > compared / 10 > 0
