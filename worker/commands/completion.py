"""Shell completion: shtab writes the script from the parsers of all commands."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TextIO

from worker.core.errors import ExitCode, Fatal

SHELLS = ("bash", "zsh", "fish")  # shtab also has tcsh and powershell


def write_completion(parser: argparse.ArgumentParser, shell: str, *, out: TextIO) -> int:
    """Print the completion script of a parser and its subparsers. Raises Fatal if shtab is not installed."""
    try:
        import shtab
    except ImportError:
        raise Fatal(
            "completion needs shtab: pip install 'kafka-ingest-worker[completion]'", code=ExitCode.FAILED
        ) from None
    _complete_files(parser, shtab.FILE)
    print(shtab.complete(parser, shell), file=out)
    return ExitCode.OK


def _complete_files(parser: argparse.ArgumentParser, completer: object) -> None:
    """Mark every argument that names a file, also those of the subparsers."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _complete_files(subparser, completer)
        elif action.type is Path:
            action.complete = completer  # type: ignore[attr-defined]
