"""Commands: a missing or unknown argument is an error that says what to write instead; exit code 2."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from docs.generate import HERE, PAGES
from worker import cli
from worker.__main__ import _COMMANDS, main
from worker.config.settings import Settings, flag_of


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--backend", "redis"], "write --topic NAME"),
        (["--topic", "t", "--backnd", "redis"], "did you mean --backend?"),
        (["--topic", "t", "--processes", "0"], "1 to 256"),
        (["rnu"], "did you mean run?"),
        (["--topic", "t", "-X", "nonsense"], "KEY=VALUE"),
        (["produce"], "write --topic NAME"),
        (["produce", "--topic", "t", "--bad-ratio", "2"], "from 0 to 1"),
        (["timestamps"], "FILE"),
        (["demo", "--seconds", "x"], "a number"),
        (["--topic", "t", "--map", "a=b"], "--map: it has no effect with --backend redis"),
        (["check", "--topic", "t", "--backend", "clickhouse", "--windows", "day"], "--windows: it has no effect"),
        (["verify", "--topic", "t", "--allow-merged"], "--allow-merged: it has no effect with --backend redis"),
    ],
)
def test_usage_errors(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORKER_TOPIC", raising=False)
    assert main(argv) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_help_has_every_option_once_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    sections = re.split(r"^(\S.*):$", capsys.readouterr().out, flags=re.MULTILINE)
    groups = dict(zip(sections[1::2], sections[2::2], strict=True))
    options = [item for item in fields(Settings) if not item.metadata["secret"]]
    assert [title for title in groups if title[0].isupper()] == list(
        dict.fromkeys(item.metadata["group"] for item in options)
    )
    for item in options:
        flag = re.compile(rf"^  {flag_of(item.name)}( |$)", re.MULTILINE)
        assert [title for title, text in groups.items() if flag.search(text)] == [item.metadata["group"]]


def test_help_and_errors_name_the_program_worker(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["dlq", "--help"])
    assert capsys.readouterr().out.startswith("usage: worker dlq ")
    assert main(["rnu"]) == 2
    assert capsys.readouterr().err.endswith("see: worker --help\n")


def test_version_names_the_worker_and_python(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["dlq", "--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"worker \S+, Python 3\.\d+\.\S+, reader (native|python .*)\n", capsys.readouterr().out)


def test_help_does_not_import_the_metadata_of_packages() -> None:
    program = "import sys, worker.cli; worker.cli.parse(['--topic', 't']); print('importlib.metadata' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout == "False\n"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in cli.COMMANDS)
    assert set(cli.COMMANDS) == set(_COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert cli.COMMANDS[command] in capsys.readouterr().out or command == "run"


def complete(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Return what bash proposes for the last word of a command line."""
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "worker.bash"
    script.write_text(capsys.readouterr().out)
    program = f"""
        source {script}
        COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}
        $(complete -p worker | sed -E 's/.*-F ([^ ]+).*/\\1/') worker {shlex.quote(words[-1])} {shlex.quote(words[-2])}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    bash = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    return set(bash.stdout.split())


@pytest.mark.parametrize(
    ("words", "proposals"),
    [
        (["worker", "ver"], {"verify"}),
        (["worker", "--backe"], {"--backend"}),
        (["worker", "--backend", ""], {"redis", "clickhouse", "redis,clickhouse"}),
        (["worker", "dlq", ""], {"list", "stats", "replay"}),
        (["worker", "check", "--log-format", "j"], {"json"}),
        (["worker", "--config", "worker.b"], {"worker.bash"}),
        (["worker", "timestamps", "worker.b"], {"worker.bash"}),
    ],
)
def test_bash_completes_commands_options_values_and_files(
    words: list[str], proposals: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complete(words, tmp_path, capsys) == proposals


def test_completion_has_every_option_for_each_shell(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, first in (("bash", "# AUTOMATICALLY"), ("zsh", "#compdef worker"), ("fish", "# AUTOMATICALLY")):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert script.startswith(first)
        for item in fields(Settings):
            assert (flag_of(item.name).removeprefix("--") in script) == (not item.metadata["secret"])


def test_completion_without_shtab_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    output = capsys.readouterr()
    assert output.err == "worker: completion needs shtab: pip install 'kafka-ingest-worker[completion]'\n"
    assert output.out == ""


def test_producer_options_with_underscores_work_too() -> None:
    _, arguments = cli.parse(
        ["produce", "--topic", "t", "--num_devices", "5", "--pause_ms", "0.5", "--num_messages", "7"]
    )
    assert (arguments.num_devices, arguments.pause_ms, arguments.num_messages) == (5, 0.5, 7)


def test_timestamps_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = tmp_path / "cases"
    cases.write_text("0,1970-01-01T00:00:00.000Z\n'nonsense',1970-01-01T00:00:00.000Z\n")
    assert main(["timestamps", str(cases)]) == 1
    output = capsys.readouterr().out
    assert "1 passed, 1 failed" in output
    assert "nonsense" in output


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_match_the_code(name: str) -> None:
    assert (HERE / name).read_text() == PAGES[name](), "run: make docs"
