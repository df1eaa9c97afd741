"""Output to pipes, terminals, sockets and files whose reader reads, reads late, or has ended."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import socket
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from worker.core.output import Output

LINE = b"x" * 199 + b"\n"
Ends = tuple[int, int]
Opener = Callable[[int], Output]


def pipe() -> Ends:
    return os.pipe()


def terminal() -> Ends:
    reader, writer = pty.openpty()
    tty.setraw(writer)
    return reader, writer


def sockets() -> Ends:
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Open outputs, and close them after the test."""
    outputs: list[Output] = []

    def open_output(number: int) -> Output:
        outputs.append(Output(number))
        return outputs[-1]

    yield open_output
    for out in outputs:
        out.close()


@pytest.fixture(params=[pipe, terminal, sockets, "unopenable pipe"])
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    """Return reader and writer. `unopenable`: as where /proc is missing, or the pipe is another user's."""
    make: Callable[[], Ends] = pipe if isinstance(request.param, str) else request.param
    reader, writer = make()
    if isinstance(request.param, str):

        def refuse(*_: object) -> int:
            raise PermissionError

        monkeypatch.setattr("worker.core.output.os.open", refuse)
    yield reader, writer
    for number in (reader, writer):
        with suppress(OSError):
            os.close(number)


def fill(out: Output) -> int:
    """Write lines until one is dropped; return the number of those that were written."""
    count = 0
    while out.write(LINE):
        count += 1
        assert count < 100_000
    return count


def drain(reader: int) -> bytes:
    data = b""
    while select.select([reader], [], [], 0.02)[0]:
        data += os.read(reader, 1 << 20)
    return data


def test_lines_are_dropped_while_nobody_reads_and_written_whole_before_and_after(ends: Ends, opened: Opener) -> None:
    reader, writer = ends
    out = opened(writer)
    count = fill(out)
    assert count > 0
    began = time.monotonic()
    assert not any(out.write(LINE) for _ in range(1000))
    assert time.monotonic() - began < 10, "only the first dropped line waits for the reader"
    data = drain(reader)
    while not out.write(b"after\n"):
        data += drain(reader)
    data += drain(reader)
    assert data == LINE * count + b"after\n"


def test_a_slow_reader_gets_every_line(ends: Ends, opened: Opener) -> None:
    reader, writer = ends
    out, data = opened(writer), bytearray()

    def read() -> None:
        while len(data) < 2000 * len(LINE):
            data.extend(os.read(reader, 1 << 16))
            time.sleep(0.001)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    written = [out.write(b"%06d" % number + LINE[6:]) for number in range(2000)]
    thread.join(0 if not all(written) else 30)
    assert all(written)
    assert bytes(data) == b"".join(b"%06d" % number + LINE[6:] for number in range(2000))


def test_the_flags_that_other_programs_share_stay(ends: Ends, opened: Opener) -> None:
    flags = fcntl.fcntl(ends[1], fcntl.F_GETFL)
    opened(ends[1]).write(LINE)
    assert fcntl.fcntl(ends[1], fcntl.F_GETFL) == flags
    assert not flags & os.O_NONBLOCK


def test_a_long_line_is_completed_before_the_next(ends: Ends, opened: Opener) -> None:
    reader, writer = ends
    out = opened(writer)
    long = b"y" * 1_000_000 + b"\n"
    assert out.write(long)
    assert not out.write(b"dropped\n")
    data = b""
    while not out.write(b"next\n"):
        data += drain(reader)
    assert data + drain(reader) == long + b"next\n"


def test_an_ended_reader_is_an_error(opened: Opener) -> None:
    reader, writer = pipe()
    out = opened(writer)
    fill(out)
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        out.write(LINE)
    os.close(writer)


def test_a_file_is_appended_to_where_the_descriptor_stands(tmp_path: Path, opened: Opener) -> None:
    path = tmp_path / "log"
    with path.open("wb", buffering=0) as file:
        file.write(b"before\n")
        assert opened(file.fileno()).write(b"after\n")
    assert path.read_bytes() == b"before\nafter\n"


def test_processes_that_share_a_pipe_do_not_block_each_other() -> None:
    """Each checks and writes at the same time as the others, until the pipe is full and beyond."""
    reader, writer = pipe()
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            out = Output(writer)
            for _ in range(5000):
                out.write(LINE)
            os._exit(0)
        children.append(pid)
    deadline = time.monotonic() + 60
    while children and time.monotonic() < deadline:
        children = [pid for pid in children if os.waitpid(pid, os.WNOHANG) == (0, 0)]
        time.sleep(0.01)
    for pid in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert not children, "blocked"
    os.close(writer)
    lines = drain_to_end(reader).splitlines(keepends=True)
    assert lines
    assert set(lines) == {LINE}


def drain_to_end(reader: int) -> bytes:
    with os.fdopen(reader, "rb") as file:
        return file.read()
