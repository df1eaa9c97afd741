"""The events that `produce` writes: a fleet of N devices, five timestamp forms mixed, and invalid events on request.

Each purpose has a random generator of its own with one draw per event. So the events do not depend on how many are
taken at a time. No I/O.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from math import gcd

MAX_DEVICES = 2**24 - 1  # 10.0.0.1 … 10.255.255.255
SEEDED_EPOCH_MS = 1_700_000_000_000  # 2023-11-14T22:13:20Z: where the clock of a seeded fleet starts
EVENTS_PER_TICK = 100  # share one clock reading; a seeded clock advances 1 ms after each

_CODES = 11  # error codes 0 … 10
_FORMS = 10
# One draw decides device, code and form: device x 110 + code x 10 + form. Its parts index the pieces of an event.
_PER_DEVICE = _CODES * _FORMS
_PER_BLOCK = 256 * _PER_DEVICE  # devices of one a.b.c.* block
_TAILS = [b'%d", "error_code": %d}\n' % (octet, code) for octet in range(256) for code in range(_CODES)]

_IP = b"<ip>"
# One event of each kind; `<ip>` stands for a device of the fleet. All are invalid for a sink that stores all three
# fields. A sink that stores only the device accepts those with a valid device.
BAD_EVENTS = (
    # not JSON, JSON that is not an object, and not UTF-8
    b"not json",
    b'{"timestamp": "2023-11-14T22:13:20.000Z", "device_ip": "<ip>", "error_c',
    b'["2023-11-14T22:13:20.000Z", "<ip>", 3]',
    b'{"timestamp": "2023-11-14T22:13:20.000Z", "device_ip": "\xff\xfe<ip>", "error_code": 3}',
    # a field is missing
    b'{"device_ip": "<ip>", "error_code": 3}',
    b'{"timestamp": "2023-11-14T22:13:20.000Z", "error_code": 3}',
    b'{"timestamp": "2023-11-14T22:13:20.000Z", "device_ip": "<ip>"}',
    # a field has the wrong type
    b'{"timestamp": {"at": "2023-11-14T22:13:20.000Z"}, "device_ip": "<ip>", "error_code": 3}',
    b'{"timestamp": "2023-11-14T22:13:20.000Z", "device_ip": 167772161, "error_code": 3}',
    b'{"timestamp": "2023-11-14T22:13:20.000Z", "device_ip": "<ip>", "error_code": "three"}',
    # an error code outside Int8
    b'{"timestamp": "2023-11-14T22:13:20.000Z", "device_ip": "<ip>", "error_code": 300}',
    b'{"timestamp": "2023-11-14T22:13:20.000Z", "device_ip": "<ip>", "error_code": -129}',
    # text that is not a timestamp, and a date that does not exist
    b'{"timestamp": "yesterday", "device_ip": "<ip>", "error_code": 3}',
    b'{"timestamp": "2023-13-45T22:13:20Z", "device_ip": "<ip>", "error_code": 3}',
)


class Fleet:
    """An endless, reproducible sequence of events as JSON payloads.

    The first `devices` valid events come from as many different devices (a walk through all of them in a shuffled
    order). Later events come from all devices, evenly distributed. Without a seed the timestamps are the clock's. With
    a seed they start at SEEDED_EPOCH_MS and advance 1 ms every EVENTS_PER_TICK valid events, so that the bytes are
    reproducible. `bad` counts the invalid events so far: a share of `bad_ratio` of all, evenly from BAD_EVENTS.
    """

    def __init__(self, devices: int, *, seed: int | None = None, bad_ratio: float = 0.0) -> None:
        if not 1 <= devices <= MAX_DEVICES:
            raise ValueError(f"a fleet has 1 to {MAX_DEVICES} devices, not {devices}")
        if not 0 <= bad_ratio <= 1:
            raise ValueError(f"the ratio of invalid events is from 0 to 1, not {bad_ratio}")
        self._devices = devices
        self._bad_ratio = bad_ratio
        self._seeded = seed is not None
        self._draws, self._bad_draws, walk = (
            random.Random(None if seed is None else f"{seed}/{purpose}") for purpose in ("draw", "spoil", "walk")
        )
        self._space = range(_PER_DEVICE, (devices + 1) * _PER_DEVICE)  # device 0 is 10.0.0.1
        self._heads = [b"%d.%d." % divmod(block, 256) for block in range((devices >> 8) + 1)]
        self._good = 0
        self.bad = 0
        self._forms: Sequence[bytes] = ()
        self._walk_start = walk.randrange(devices)
        self._walk_step = _coprime(walk, devices)

    def take(self, count: int) -> list[bytes]:
        """Return the next `count` events."""
        if not self._bad_ratio:
            return self._take_good(count)
        draw = self._bad_draws.random
        bad_events: dict[int, bytes] = {}
        for position in range(count):
            if draw() < self._bad_ratio:
                kind = BAD_EVENTS[int(draw() * len(BAD_EVENTS))]
                bad_events[position] = kind.replace(_IP, device_ip(int(draw() * self._devices)).encode())
        events = self._take_good(count - len(bad_events))
        for position, event in bad_events.items():
            events.insert(position, event)
        self.bad += len(bad_events)
        return events

    def _take_good(self, count: int) -> list[bytes]:
        draws = self._walk(min(count, max(0, self._devices - self._good)))
        draws += self._draws.choices(self._space, k=count - len(draws))
        heads = self._heads
        pieces = [b""] * (3 * count)
        pieces[0::3] = self._prefixes(draws)
        pieces[1::3] = [heads[draw // _PER_BLOCK] for draw in draws]
        pieces[2::3] = [_TAILS[draw // _FORMS % len(_TAILS)] for draw in draws]
        return b"".join(pieces).split(b"\n")[:-1]

    def _walk(self, count: int) -> list[int]:
        """Return draws for the next `count` devices of the first walk."""
        steps = range(self._good, self._good + count)
        devices = [(self._walk_start + step * self._walk_step) % self._devices for step in steps]
        codes_and_forms = self._draws.choices(range(_PER_DEVICE), k=count)
        return [(device + 1) * _PER_DEVICE + other for device, other in zip(devices, codes_and_forms, strict=True)]

    def _prefixes(self, draws: list[int]) -> list[bytes]:
        """Return each event's beginning, up to the first number of its address."""
        prefixes: list[bytes] = []
        while len(prefixes) < len(draws):
            tick, since_tick = divmod(self._good, EVENTS_PER_TICK)
            if not (self._seeded and since_tick and self._forms):
                self._forms = timestamp_forms(SEEDED_EPOCH_MS + tick if self._seeded else int(time.time() * 1000))
            forms = self._forms
            block = draws[len(prefixes) : len(prefixes) + EVENTS_PER_TICK - since_tick]
            prefixes += [forms[draw % _FORMS] for draw in block]
            self._good += len(block)
        return prefixes


def device_ip(index: int) -> str:
    """Return the address of device `index`: 10.0.0.1 for 0, and so on, up to MAX_DEVICES devices."""
    number = index + 1
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def timestamp_forms(millis: int) -> list[bytes]:
    """Return the beginning of an event at `millis` (Unix ms) in each form; the five forms have two entries each."""
    seconds, fraction = divmod(millis, 1000)
    iso = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    values = [
        f'"{iso}.{fraction:03d}Z"',
        f'"{iso}.{fraction:03d}Z"',
        f'"{iso}.{fraction:03d}"',
        f'"{iso}.{fraction:03d}"',
        f'"{iso}"',
        f'"{iso}"',
        f"{millis}",
        f'"{millis}"',
        f"{seconds}",
        f'"{seconds}"',
    ]
    return [f'{{"timestamp": {form}, "device_ip": "10.'.encode() for form in values]


def _coprime(source: random.Random, number: int) -> int:
    """Return a random step that visits every residue of `number` once before it repeats."""
    while True:
        step = source.randrange(1, number + 1)
        if gcd(step, number) == 1:
            return step
