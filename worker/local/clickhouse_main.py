"""Run as a file: `clickhouse_main.py LIBRARY ARGUMENT…` runs clickhouse-local's main function from libchdb.so.

That program aborts when a connection handler throws: after a wrong password, a TLS hello, or a client that dies while
it inserts. The real server logs the error and continues. Fault tests need that, so this module finds the handler that
aborts (`KillingErrorHandler`, src/Common/ErrorHandlers.h of ClickHouse) by its type's name and replaces its three
functions with one that does nothing. If it does not find the name, or on other systems than Linux, it changes nothing.
"""

import ctypes
import io
import os
import struct
import sys

_HANDLER_NAME = b"\x0019KillingErrorHandler\x00"  # its std::type_info::name


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    library.chdb_set_signal_handlers_enabled(0)  # its handlers keep a crashed process alive for minutes
    if not disable_killing_handler(sys.argv[1]):
        print("ClickHouse aborts on connection errors: no KillingErrorHandler found", file=sys.stderr, flush=True)
    arguments = [b"clickhouse", *map(str.encode, sys.argv[2:])]
    argv = (ctypes.c_char_p * (len(arguments) + 1))(*arguments)
    library.chdb_query_cmdline(len(arguments), argv)


def disable_killing_handler(library: str) -> bool:
    """Disable the handler in this process's copy of the library; False if it was not found."""
    if sys.platform != "linux":
        return False
    no_operation = struct.pack("<Q", ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value or 0)
    constants, relocated = _mappings(os.path.realpath(library))
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        name = _find(memory, constants, _HANDLER_NAME) + 1
        type_info = _find(memory, relocated, struct.pack("<Q", name)) - 8 if name > 0 else -1
        vtable = _find(memory, relocated, struct.pack("<QQ", 0, type_info)) if type_info > 0 else -1
        if vtable < 0:
            return False
        memory.seek(vtable + 4 * 8)  # offset to top, type, two destructors, then the three `exception` functions
        memory.write(3 * no_operation)  # /proc/self/mem can write to read-only pages
    return True


def _mappings(library: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return where the library's constants and, after its code, its relocated data are mapped."""
    constants: list[tuple[int, int]] = []
    relocated: list[tuple[int, int]] = []
    after_code = False
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            span, rights, _, _, _, *path = line.rstrip("\n").split(maxsplit=5)
            if path != [library]:
                continue
            start, end = (int(edge, 16) for edge in span.split("-"))
            after_code = after_code or "x" in rights
            if "x" not in rights:
                (relocated if after_code else constants).append((start, end))
    return constants, relocated


def _find(memory: io.FileIO, spans: list[tuple[int, int]], wanted: bytes) -> int:
    """Return the address of the first occurrence, or -1."""
    for start, end in spans:
        memory.seek(start)
        offset = memory.read(end - start).find(wanted)
        if offset >= 0:
            return start + offset
    return -1


if __name__ == "__main__":
    main()
