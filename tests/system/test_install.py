"""Wheels and sdist as a user installs them: into a clean environment, with the native package and without it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.support.job import Job, MakeJob
from tests.support.kit import PATIENCE_S, Service
from tests.support.oracle import EXACT, events
from worker.core.native import TESTED_CONFLUENT_KAFKA
from worker.core.version import version_text

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
NAME = f"kafka_ingest_worker_native-{version_text()}"
REASON = "the package kafka-ingest-worker-native is not installed"
# `make native` has fetched the crates. Without optimization the sdist is compiled in 10 s, not 30.
OFFLINE = {"CARGO_NET_OFFLINE": "true"}
QUICK = {
    "CARGO_PROFILE_RELEASE_OPT_LEVEL": "0",
    "CARGO_PROFILE_RELEASE_LTO": "off",
    "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
}


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> str:
    """Run a command to its end and return stdout and stderr; AssertionError if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # pip's build calls maturin
    variables = {**os.environ, "PATH": path, "PYTHONPATH": "", "PYTHONSAFEPATH": "1", **(env or {})}
    done = subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, check=False, timeout=5 * PATIENCE_S
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def run_module(*arguments: str | Path, env: Mapping[str, str] | None = None) -> None:
    run(sys.executable, "-m", *arguments, env=env)


@pytest.fixture(scope="module")
def worker_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("worker")
    run_module("hatchling", "build", "-t", "wheel", "-d", directory)
    (wheel,) = directory.iterdir()
    return wheel


@pytest.fixture(scope="module")
def native_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a release has it; what `make native` compiled is used again."""
    directory = tmp_path_factory.mktemp("native")
    options = ("--release", "--locked", "--manifest-path", NATIVE / "Cargo.toml", "--interpreter", sys.executable)
    run_module("maturin", "build", *options, "--out", directory, env=OFFLINE)
    (wheel,) = directory.iterdir()
    return wheel


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    run_module("maturin", "sdist", "--manifest-path", NATIVE / "Cargo.toml", "--out", directory, env=OFFLINE)
    (archive,) = directory.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel_of_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("built")
    env = {**OFFLINE, **QUICK, "CARGO_TARGET_DIR": str(tmp_path_factory.mktemp("target"))}
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", directory)
    run_module("pip", "wheel", *options, sdist, env=env)
    (wheel,) = directory.iterdir()
    return wheel


@pytest.fixture(params=["without", "wheel", "sdist"])
def install(request: pytest.FixtureRequest, worker_wheel: Path, tmp_path: Path) -> tuple[Path, str]:
    """A clean environment's Python with the worker, and the reader that it should use."""
    fixture = {"wheel": "native_wheel", "sdist": "wheel_of_sdist"}.get(request.param)
    wheels = [worker_wheel, *([request.getfixturevalue(fixture)] if fixture else [])]
    return environment(tmp_path, *wheels), "native" if fixture else f"python ({REASON})"


def environment(directory: Path, *wheels: Path) -> Path:
    """Install wheels into a new environment beside links to the other packages of this one; return its Python."""
    venv.create(directory / "venv", symlinks=True)
    python = directory / "venv" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(directory / "venv")}))
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        is_ours = package.name.startswith(("worker_native", "kafka_ingest_worker", "__pycache__"))
        if not is_ours and package.suffix != ".pth":
            (packages / package.name).symlink_to(package)
    run_module("pip", "--python", python, "install", "--no-deps", "--no-index", *wheels)
    return python


def test_the_native_wheel_is_for_every_python_and_typed(native_wheel: Path, wheel_of_sdist: Path) -> None:
    for wheel in (native_wheel, wheel_of_sdist):
        assert wheel.name.startswith(f"{NAME}-cp311-abi3-")
        with zipfile.ZipFile(wheel) as archive:
            assert archive.read("worker_native/__init__.pyi") == (NATIVE / "worker_native.pyi").read_bytes()
            names = set(archive.namelist())
        assert {"worker_native/py.typed", f"{NAME}.dist-info/licenses/LICENSE"} <= names


def test_the_sdist_has_the_sources_and_the_lock_and_nothing_else(sdist: Path) -> None:
    assert sdist.name == f"{NAME}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(path.relative_to(NATIVE)) for path in (NATIVE / "src").rglob("*.rs")}
    others = {"Cargo.toml", "Cargo.lock", "pyproject.toml", "worker_native.pyi", "LICENSE", "PKG-INFO"}
    assert names == sources | others
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    package, client = extras["native"]
    assert package == f"kafka-ingest-worker-native=={version_text()}"
    installed = SpecifierSet(client.removeprefix("confluent-kafka"))
    minors = [f"{major}.{minor}" for major in range(1, 5) for minor in range(40)]
    assert [minor for minor in minors if f"{minor}.1" in installed] == list(TESTED_CONFLUENT_KAFKA)
    assert (NATIVE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_an_installed_worker_says_which_reader_it_uses_and_works(
    install: tuple[Path, str], kafka: Service, redis_server: Service, make_job: MakeJob, tmp_path: Path
) -> None:
    python, reader = install
    assert run(python, "-m", "worker", "--version", cwd=tmp_path).endswith(f"reader {reader}\n")
    job: Job = make_job(kafka, redis_server.address)
    job.create()
    job.send(events(100))
    output = run(python, "-m", "worker", *job.arguments("--until-end"), cwd=tmp_path)
    assert output.count(f"reader {reader}") == 1
    assert job.judge(range(100)) == EXACT
