"""The events that `produce` writes: a fleet of N devices, five timestamp forms mixed, and bad events on request.

Everything is drawn from generators of its own seed, one draw per event and purpose, so the events do not depend on how
many are taken at a time. Nothing here does I/O.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from math import gcd

MAX_DEVICES = 2**24 - 1  # 10.0.0.1 … 10.255.255.255
SEEDED_EPOCH_MS = 1_700_000_000_000  # 2023-11-14T22:13:20Z: where the clock of a seeded fleet starts
EVENTS_PER_TICK = 100  # share one clock reading; a seeded clock goes on by 1 ms after each

_CODES = 11  # error codes 0 … 10
_FORMS = 10
# One draw decides device, code and form: device x 110 + code x 10 + form. The pieces are looked up by parts of it.
_PER_DEVICE = _CODES * _FORMS
_PER_BLOCK = 256 * _PER_DEVICE  # devices of one a.b.c.* block
_TAILS = [b'%d", "error_code": %d}\n' % (octet, code) for octet in range(256) for code in range(_CODES)]

_IP = b"<ip>"
# One of each kind, `<ip>` standing for a device of the fleet. Bad to a sink that stores all three fields; one that
# stores the device alone takes those with a good device.
BAD_EVENTS = (
    # not JSON, JSON that is no object, and not UTF-8
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
    # an error code that no Int8 holds
    b'{"timestamp": "2023-11-14T22:13:20.000Z", "device_ip": "<ip>", "error_code": 300}',
    b'{"timestamp": "2023-11-14T22:13:20.000Z", "device_ip": "<ip>", "error_code": -129}',
    # a timestamp that is none, and one that no calendar has
    b'{"timestamp": "yesterday", "device_ip": "<ip>", "error_code": 3}',
    b'{"timestamp": "2023-13-45T22:13:20Z", "device_ip": "<ip>", "error_code": 3}',
)


class Fleet:
    """An endless, reproducible sequence of events as JSON payloads.

    The first `devices` good events come from as many different devices (a walk through all of them in a shuffled
    order); later ones from any, evenly. Without a seed the timestamps are the clock's; with one they start at
    SEEDED_EPOCH_MS and go on by 1 ms every EVENTS_PER_TICK good events, so that the bytes are reproducible.
    `bad` counts the bad events so far: a share of `bad_ratio` of all, each of a kind chosen evenly from BAD_EVENTS.
    """

    def __init__(self, devices: int, *, seed: int | None = None, bad_ratio: float = 0.0) -> None:
        if not 1 <= devices <= MAX_DEVICES:
            raise ValueError(f"a fleet has 1 to {MAX_DEVICES} devices, not {devices}")
        if not 0 <= bad_ratio <= 1:
            raise ValueError(f"the ratio of bad events is from 0 to 1, not {bad_ratio}")
        self._devices = devices
        self._bad_ratio = bad_ratio
        self._seeded = seed is not None
        self._draws, self._spoils, walk = (
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
        spoil = self._spoils.random
        spoiled: dict[int, bytes] = {}
        for position in range(count):
            if spoil() < self._bad_ratio:
                kind = BAD_EVENTS[int(spoil() * len(BAD_EVENTS))]
                spoiled[position] = kind.replace(_IP, device_ip(int(spoil() * self._devices)).encode())
        events = self._take_good(count - len(spoiled))
        for position, event in spoiled.items():
            events.insert(position, event)
        self.bad += len(spoiled)
        return events

    def _take_good(self, count: int) -> list[bytes]:
        draws = self._walk(min(count, max(0, self._devices - self._good)))
        draws += self._draws.choices(self._space, k=count - len(draws))
        heads = self._heads
        pieces = [b""] * (3 * count)
        pieces[0::3] = self._stamps(draws)
        pieces[1::3] = [heads[draw // _PER_BLOCK] for draw in draws]
        pieces[2::3] = [_TAILS[draw // _FORMS % len(_TAILS)] for draw in draws]
        return b"".join(pieces).split(b"\n")[:-1]

    def _walk(self, count: int) -> list[int]:
        """Return draws for the next `count` devices of the first walk."""
        steps = range(self._good, self._good + count)
        devices = [(self._walk_start + step * self._walk_step) % self._devices for step in steps]
        rest = self._draws.choices(range(_PER_DEVICE), k=count)
        return [(device + 1) * _PER_DEVICE + other for device, other in zip(devices, rest, strict=True)]

    def _stamps(self, draws: list[int]) -> list[bytes]:
        """Return each event's beginning, up to its address's first number."""
        stamps: list[bytes] = []
        while len(stamps) < len(draws):
            tick, into = divmod(self._good, EVENTS_PER_TICK)
            if not (self._seeded and into and self._forms):
                self._forms = timestamp_forms(SEEDED_EPOCH_MS + tick if self._seeded else int(time.time() * 1000))
            forms = self._forms
            block = draws[len(stamps) : len(stamps) + EVENTS_PER_TICK - into]
            stamps += [forms[draw % _FORMS] for draw in block]
            self._good += len(block)
        return stamps


def device_ip(index: int) -> str:
    """Return the address of device `index`: 10.0.0.1 for 0, and so on, at most MAX_DEVICES of them."""
    number = index + 1
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def timestamp_forms(millis: int) -> list[bytes]:
    """Return the beginning of an event at `millis` (Unix ms) in each form; the five forms have two entries each."""
    seconds, fraction = divmod(millis, 1000)
    iso = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    written = [
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
    return [f'{{"timestamp": {form}, "device_ip": "10.'.encode() for form in written]


def _coprime(source: random.Random, number: int) -> int:
    """Return a step that visits every residue of `number` once before it repeats."""
    while True:
        step = source.randrange(1, number + 1)
        if gcd(step, number) == 1:
            return step
