"""The arithmetic of the benchmark: ratios, totals, shared work, saved runs, and the blocks of the README files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from bench import callgrind, markdown, measure, report, rounds
from bench.figures import Result, Sample


def _sample(number: int, reader_us: float, **figures: float) -> Sample:
    zero = dict.fromkeys(("reader_s", "startup_s", "store_us", "broker_us", "rate", "steal", "wall", "rss_sum"), 0.0)
    return Sample(round=number, reader_us=reader_us, rss=0, stages={}, split_us=[], **{**zero, **figures})  # type: ignore[arg-type]


def _run(split: list[float]) -> measure.Run:
    return measure.Run(0, "", "", 0.0, 0.0, split, {}, 0, 0, 0.0)


def test_a_ratio_is_of_two_samples_of_the_same_round() -> None:
    worker = Result("worker", "redis", 10, samples=[_sample(1, 6.0), _sample(2, 9.0)])  # failed in round 0
    floor = Result("floor", "nothing", 10, samples=[_sample(0, 100.0), _sample(1, 2.0), _sample(2, 3.0)])
    assert worker.ratios(floor, "reader_us") == [3.0, 3.0]


def test_a_total_has_one_start_up_of_the_whole_topic() -> None:
    sample = _sample(0, 1.0, startup_s=0.5, store_us=0.25, broker_us=0.125)
    assert Result("slow", "redis", 200_000, samples=[sample]).totals(2_000_000) == [1.625]
    assert Result("engine", "clickhouse", 200_000, in_store=True, samples=[sample]).totals(2_000_000) == [1.375]


@pytest.mark.parametrize(
    ("split", "error"),
    [
        ([0.1, 0.1, 1.2, 0.2], "one of 2 consumers did 100% of the work"),
        ([0.1, 0.1, 0.9, 0.7], ""),
        ([0.1, 0.1, 0.3, 0.2], ""),  # too little to judge from
        ([0.1, 0.1, 1.2], ""),
    ],
)
def test_a_run_in_which_one_consumer_does_the_work_is_unfair(split: list[float], error: str) -> None:
    assert rounds._unfair(_run(split), _run([0.1, 0.1, 0.2, 0.2])) == error


def test_a_saved_run_has_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    results = [Result("worker, 1 process", "redis", 10, True, samples=[_sample(0, 1.0), _sample(1, 2.0)])]
    loaded, about = report.load(report.save(results, {"reader": "native"}))
    assert [asdict(result) for result in loaded] == [asdict(result) for result in results]
    assert about["reader"] == "native"
    assert report.table(loaded) == report.table(results)


def test_blocks_are_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a <!-- bench x -->1<!-- /bench --> b\n<!-- bench y -->\n<!-- /bench -->\nc\n")
    for _ in range(2):
        markdown.replace(page, {"x": "0.5", "y": "| \\1 |", "z": "?"})
        text = "a <!-- bench x -->0.5<!-- /bench --> b\n<!-- bench y -->\n| \\1 |\n<!-- /bench -->\nc\n"
        assert page.read_text() == text


def test_both_readme_files_have_the_blocks_that_the_report_writes() -> None:
    root = Path(__file__).parents[1]
    for name, blocks in (
        ("README.md", ("short", "native-share", "python-share")),
        ("bench/README.md", ("run", "full", "bars")),
    ):
        text = (root / name).read_text()
        assert all(f"<!-- bench {block} -->" in text for block in blocks), name


def test_the_reader_among_processes_is_the_one_that_unpacks_messages(tmp_path: Path) -> None:
    (tmp_path / "900").write_text("fn=(1) unpack\ntotals: 900\n")
    (tmp_path / "1000").write_text("fn=(1) unpack_more\ntotals: 1000\n")
    (tmp_path / "1000.log").write_text("fn=(1) unpack\n")
    readers = [file for file in callgrind.profiles(tmp_path) if callgrind.calls(file, "unpack")]
    assert [callgrind.instructions(file) for file in readers] == [900]
