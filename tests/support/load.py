"""A varying load of events, for tests that watch a running worker."""

from __future__ import annotations

import threading
import time

from tests.support.kit import send

GOOD = b'{"timestamp": %d, "device_ip": "10.%d.%d.%d", "error_code": 1}'


class Load:
    """Writes events at a varying rate, a few of them invalid, until stopped. Kafka has acknowledged `sent` of them."""

    def __init__(self, address: str, topic: str) -> None:
        self.sent = 0
        self._target = (address, topic)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        turn = 0
        while not self._stop.wait(0.2):
            turn += 1
            size = 500 + 400 * abs(turn % 40 - 20) // 20 + (2000 if turn % 97 < 12 else 0)
            now = int(time.time())
            events: list[bytes | None] = [GOOD % (now, turn % 200, i % 251, i % 83) for i in range(size)]
            if turn % 3 == 0:
                events[0] = (b"not an event", b"[1]", b'{"device_ip": 7}', b"{}")[turn // 3 % 4]
            send(*self._target, events)
            self.sent += size
