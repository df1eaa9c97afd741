"""Certificates for tests, created with openssl: a certificate authority and a server certificate for 127.0.0.1."""

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
    unrelated: Path  # another certificate authority, which signed none of these


def make_certificates(directory: Path) -> Certificates:
    """Write the files into a directory of the test."""
    certificates = Certificates(
        *(directory / name for name in ("authority.pem", "server.pem", "server.key", "chain.pem", "unrelated.pem"))
    )
    for name, file in (("authority", certificates.authority), ("unrelated", certificates.unrelated)):
        key = directory / f"{name}.key"
        _openssl("req", "-x509", *_NEW_KEY, "-keyout", key, "-out", file, "-subj", f"/CN={name} of a test")
    authority = ("-CA", certificates.authority, "-CAkey", directory / "authority.key")
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    files = ("-keyout", certificates.server_key, "-out", certificates.server)
    _openssl("req", "-x509", *_NEW_KEY, *authority, *subject, *files)
    certificates.chain.write_text(certificates.server_key.read_text() + certificates.server.read_text())
    return certificates


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)
