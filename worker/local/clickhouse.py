"""A real ClickHouse server on this machine: `clickhouse` from the PATH, else the server inside libchdb."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from worker.local import fetch
from worker.local.directory import Directory
from worker.local.process import Server, exchange, free_port

Tree = Mapping[str, "str | int | Tree"]

# Listens, then runs forever: one row every 3 s, the longest sleep that needs no server setting.
_SERVE = (
    "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP; SELECT sum(sleepEachRow(3)) FROM numbers(1000000000)"
    " SETTINGS max_block_size=1, function_sleep_max_microseconds_per_block=0"
)


def start_clickhouse(
    *,
    settings: Tree | None = None,
    config: Tree | None = None,
    users: Mapping[str, Tree] | None = None,
) -> Server:
    """Return a ClickHouse for `with`: native protocol on `port`, HTTP on `http_port`, database and user `default`.

    `settings` apply to every query (`{"max_threads": 2}`), `config` to the server
    (`{"merge_tree": {"parts_to_throw_insert": 10}}`). `users` are additional users
    (`{"reader": {"password": "x", "grants": {"query": "GRANT SELECT ON *.*"}}}`); CREATE USER has no writable storage.
    There is no Keeper, so there are no Replicated tables.
    """
    binary = shutil.which("clickhouse")
    library = None if binary else fetch.libchdb()
    directory = Directory("clickhouse")
    port, http_port = free_port(), free_port()
    users_file = directory.path / "users.xml"
    _write_xml(users_file, _users({"default": {"password": ""}, **(users or {})}, settings or {}))
    server: Tree = {
        "path": f"{directory.path / 'data'}/",
        "tcp_port": port,
        "http_port": http_port,
        "listen_host": "127.0.0.1",
        "users_config": str(users_file),
        "user_directories": {"users_xml": {"path": str(users_file)}},
        "logger": {"level": "warning", "log": str(directory.path / "server.log")},
        **(config or {}),
    }
    file = directory.path / "config.xml"
    _write_xml(file, server)
    if library:
        main = str(Path(__file__).with_name("clickhouse_main.py"))
        arguments = ["--config-file", str(file), "--log-level", "warning", "--query", _SERVE]
        command = [sys.executable, "-I", "-S", main, str(library), *arguments]
    else:
        command = [str(binary), "server", "--config-file", str(file)]
    return Server(
        directory,
        command,
        lambda: b"Ok." in exchange(http_port, b"GET /ping HTTP/1.0\r\n\r\n"),
        address=f"clickhouse://default@127.0.0.1:{port}/default",
        port=port,
        http_port=http_port,
    )


def _users(users: Mapping[str, Tree], settings: Tree) -> Tree:
    defaults: Tree = {"networks": {"ip": "::/0"}, "profile": "default", "quota": "default"}
    return {
        "profiles": {"default": settings},
        "quotas": {"default": {}},
        "users": {name: {**defaults, **user} for name, user in users.items()},
    }


def _write_xml(file: Path, tree: Tree) -> None:
    root = ElementTree.Element("clickhouse")
    _add_children(root, tree)
    ElementTree.ElementTree(root).write(file)


def _add_children(element: ElementTree.Element, tree: Tree) -> None:
    for name, value in tree.items():
        child = ElementTree.SubElement(element, name)
        if isinstance(value, Mapping):
            _add_children(child, value)
        else:
            child.text = str(value)
