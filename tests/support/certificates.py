"""Certificates for tests: an authority, and what it signs for 127.0.0.1, made with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


class Certificates(NamedTuple):
    """PEM files. `server` is for 127.0.0.1; `chain` has its key and certificate in one file."""

    authority: Path
    server: Path
    server_key: Path
    chain: Path
    stranger: Path  # another authority, which has signed nothing of this


def make_certificates(directory: Path) -> Certificates:
    """Write the files into the directory, which is the tests' own."""
    made = Certificates(
        *(directory / name for name in ("authority.pem", "server.pem", "server.key", "chain.pem", "stranger.pem"))
    )
    for name, file in (("authority", made.authority), ("stranger", made.stranger)):
        key = directory / f"{name}.key"
        _openssl("req", "-x509", *_NEW_KEY, "-keyout", key, "-out", file, "-subj", f"/CN={name} of a test")
    authority = ("-CA", made.authority, "-CAkey", directory / "authority.key")
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    _openssl("req", "-x509", *_NEW_KEY, *authority, *subject, "-keyout", made.server_key, "-out", made.server)
    made.chain.write_text(made.server_key.read_text() + made.server.read_text())
    return made


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=60)
