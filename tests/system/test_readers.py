"""Both readers do the same job, and the worker says which one it uses and why."""

from __future__ import annotations

from pathlib import Path

import pytest
import worker_native

from tests.support.job import Job, MakeJob, consumers, kill
from tests.support.kit import Service, run_worker
from tests.support.oracle import EXACT, events
from tests.support.pages import Pages
from worker.core.native import Native, describe_reader, native, reader_in_use
from worker.core.version import version_text

COUNT = 20_000
OTHER_VERSION = '__version__ = "0.0.1"'


@pytest.fixture(params=["clickhouse", "redis"])
def job(request: pytest.FixtureRequest, kafka: Service, make_job: MakeJob) -> Job:
    server: Service = request.getfixturevalue("redis_server" if request.param == "redis" else "clickhouse")
    return make_job(kafka, server.address)


@pytest.mark.parametrize("reader", ["python", "native"])
def test_both_readers_write_each_event_once_also_after_kills(job: Job, reader: str) -> None:
    job.create(3)
    unusual = [
        b'{"timestamp": "2023-11-14T22:13:20Z", "device_ip": "\\u0031.2.3.4", "error_code": 0}',  # an escape
        b'{"timestamp": 1700000000000, "error_code": 1, "error_code": 0, "device_ip": "1.2.3.4"}',  # a duplicate key
        None,
    ]
    job.send([*events(COUNT // 2), b"not json"])
    with job.start("--reader", reader, "--processes", "2") as worker:
        worker.wait_for(f"reader {reader} topic=")
        job.advance_to(COUNT // 4)
        kill(*consumers(worker))
        job.send(events(COUNT // 2, first=COUNT // 2))
        job.all_done()
        assert f'reader="{reader}"' in Pages(worker).get("/metrics")[1].decode()
    assert job.judge(range(COUNT)) == EXACT
    assert [dead_letter.reason for dead_letter in job.dead_letters()] == ["not_json"]
    job.send(unusual)
    assert "accounted for: 2 written, 0 dead letters" in job.finish("--reader", reader).tail()


def test_a_native_package_of_another_version_is_not_used(job: Job, tmp_path: Path) -> None:
    (tmp_path / "worker_native.py").write_text(OTHER_VERSION)
    reason = f"kafka-ingest-worker-native is version 0.0.1, the worker {version_text()}"
    env = {"PYTHONPATH": str(tmp_path)}
    job.create()
    job.send(events(10))
    with job.start("--until-end", env=env) as worker:
        assert worker.wait() == 0, worker.tail()
    assert f"reader python ({reason})" in worker.tail()
    with job.start("--reader", "native", env=env) as worker:
        assert worker.wait() == 78, worker.tail()
    assert f"--reader native cannot be used: {reason}" in worker.tail()
    with run_worker("check", *job.arguments(), env=env) as check:
        assert check.wait() == 0
    assert f"OK    reader: python ({reason})" in check.stdout


def test_the_version_names_the_reader() -> None:
    with run_worker("--version") as worker:
        assert worker.wait() == 0
    assert worker.stdout[0].endswith("reader native")
    assert worker_native.__version__ == version_text()


def test_the_python_reader_is_used_where_the_native_one_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native().is_usable
    assert describe_reader("auto") == describe_reader("native") == "native"
    assert describe_reader("python") == reader_in_use("python") == "python"
    for name, value in (("find_spec", lambda _: None), ("version", lambda _: "2.99.0"), ("_librdkafka", lambda: "")):
        with monkeypatch.context() as patch:
            patch.setattr(f"worker.core.native.{name}", value)
            native.cache_clear()
            assert isinstance(native(), Native)
            assert reader_in_use("auto") == "python"
            assert describe_reader("auto") == f"python ({native().reason})"
    native.cache_clear()
