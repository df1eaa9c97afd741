"""The `timestamps` command: test the timestamp parser with a file of cases."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

import orjson

from worker.core.errors import ExitCode
from worker.decoding.timestamps import normalize


def timestamps(path: Path) -> int:
    """Print the result of check_file; return the exit code: 1 if a case failed, 2 if the file cannot be read."""
    try:
        failed = check_file(path, sys.stdout)[1]
    except OSError as error:
        print(f"{path}: {error.strerror or error}; name a file with lines 'input,expected'", file=sys.stderr)
        return ExitCode.USAGE
    return ExitCode.FAILED if failed else ExitCode.OK


def check_file(path: Path, out: TextIO) -> tuple[int, int]:
    """Test each `input,expected` line of a file and write failures and a summary; return how many passed and failed.

    A quoted input is a string, an unquoted one a number if it is a JSON number, else a string. `expected` is the result
    of normalize, or `error` if the input must be rejected. Empty lines and lines that begin with `#` are skipped.
    """
    passed = failed = 0
    lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        value, comma, expected = line.rpartition(",")
        if not comma:
            problem = f"{line!r}: no comma; a line is 'input,expected'"
        else:
            problem = _check_case(_parse_input(value.strip()), expected.strip())
        if problem:
            failed += 1
            out.write(f"line {number}: {problem}\n")
        else:
            passed += 1
    out.write(f"{passed} passed, {failed} failed\n")
    return passed, failed


def _check_case(value: str | int | float, expected: str) -> str:
    """Return what is wrong with the value's normal form; empty if nothing is."""
    try:
        result = normalize(value)
    except ValueError as error:
        return "" if expected == "error" else f"{value!r}: expected {expected}, got an error: {error}"
    return "" if result == expected else f"{value!r}: expected {expected}, got {result}"


def _parse_input(text: str) -> str | int | float:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    try:
        number = orjson.loads(text)
    except ValueError:
        return text
    return number if type(number) in (int, float) else text
