"""Run as a file: `clickhouse_main.py LIBRARY ARGUMENT…` is clickhouse-local's main, taken from libchdb.so.

That program aborts when a connection handler throws, which a client that dies while it inserts, a wrong password or a
TLS hello makes it do; the real server logs and goes on. Fault tests need the latter, so the handler that aborts
(`KillingErrorHandler`, src/Common/ErrorHandlers.h of ClickHouse) is found by its type's name and its three functions
are replaced with one that does nothing. Without the name, or elsewhere than on Linux, all stays as it is.
"""

import ctypes
import io
import os
import struct
import sys

_KILLER = b"\x0019KillingErrorHandler\x00"  # its std::type_info::name


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    library.chdb_set_signal_handlers_enabled(0)  # its own hold a crashed process for minutes
    if not survive_bad_clients(sys.argv[1]):
        print("ClickHouse ends when a client dies badly: no KillingErrorHandler found", file=sys.stderr, flush=True)
    arguments = [b"clickhouse", *map(str.encode, sys.argv[2:])]
    argv = (ctypes.c_char_p * (len(arguments) + 1))(*arguments)
    library.chdb_query_cmdline(len(arguments), argv)


def survive_bad_clients(library: str) -> bool:
    """Disarm the handler in the library's copy of this process; False when it was not found."""
    if sys.platform != "linux":
        return False
    harmless = struct.pack("<Q", ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value or 0)
    constants, relocated = _mappings(os.path.realpath(library))
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        name = _find(memory, constants, _KILLER) + 1
        type_info = _find(memory, relocated, struct.pack("<Q", name)) - 8 if name > 0 else -1
        vtable = _find(memory, relocated, struct.pack("<QQ", 0, type_info)) if type_info > 0 else -1
        if vtable < 0:
            return False
        memory.seek(vtable + 4 * 8)  # offset to top, type, two destructors, then the three `exception` functions
        memory.write(3 * harmless)  # this file reaches pages that are read-only
    return True


def _mappings(library: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return where the library's constants and, behind its code, its relocated data are mapped."""
    constants: list[tuple[int, int]] = []
    relocated: list[tuple[int, int]] = []
    code_seen = False
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            span, rights, _, _, _, *path = line.rstrip("\n").split(maxsplit=5)
            if path != [library]:
                continue
            start, end = (int(edge, 16) for edge in span.split("-"))
            code_seen = code_seen or "x" in rights
            if "x" not in rights:
                (relocated if code_seen else constants).append((start, end))
    return constants, relocated


def _find(memory: io.FileIO, spans: list[tuple[int, int]], wanted: bytes) -> int:
    """Return the address of the first occurrence, -1 when there is none."""
    for start, end in spans:
        memory.seek(start)
        at = memory.read(end - start).find(wanted)
        if at >= 0:
            return start + at
    return -1


if __name__ == "__main__":
    main()
