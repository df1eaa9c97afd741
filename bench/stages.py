"""`python -m bench.stages`: CPU ns per message of each step of the path, and of each ClickHouse type; no services.

Each round runs all steps in another order. It shows the median and the minimum of all rounds. With `--callgrind` the
figures are instructions as valgrind counts them, which do not depend on the load of the machine; batches then have 3000
rows, not 100 000.
"""

from __future__ import annotations

import argparse
import gc
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

from bench import callgrind, samples

RECORDS = 1000  # messages that the worker reads at once
RECORD_BATCHES = 100  # in its default batch


class Step(NamedTuple):
    """`call` runs the step for `rows` messages, with input prepared before."""

    name: str
    call: Callable[[], Any]
    rows: int = RECORDS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.stages", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--type", action="append", default=[], metavar="TEXT", help="only types and steps with this in their name"
    )
    parser.add_argument("--rounds", type=int, default=60, help="[%(default)s]")
    parser.add_argument("--devices", type=int, default=10_000, help="distinct devices [%(default)s]")
    parser.add_argument(
        "--callgrind", action="store_true", help="count instructions with valgrind (slow; use with --type)"
    )
    parser.add_argument("--repeat", type=int, default=0, help=argparse.SUPPRESS)  # of one step, for callgrind
    options = parser.parse_args(argv)
    steps = [Step(*step) for step in samples.steps(options.devices, RECORDS, 3 if options.repeat else RECORD_BATCHES)]
    if options.repeat:
        gc.disable()
        step = next(step for step in steps if step.name == options.type[0])
        for _ in range(options.repeat):
            step.call()
        return 0
    if options.type:
        steps = [step for step in steps if any(text.lower() in step.name.lower() for text in options.type)]
    width = max((len(step.name) for step in steps), default=0)
    if options.callgrind:
        for step in steps:
            print(
                f"{step.name:{width}}  {_instructions(step, options.devices):8.0f} instructions a message", flush=True
            )
        return 0
    print(f"{'ns of CPU a message':{width}}  {'median':>8} {'min':>8}")
    for name, times in measure(steps, options.rounds).items():
        print(f"{name:{width}}  {median(times):8.0f} {min(times):8.0f}")
    return 0


def measure(steps: list[Step], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {step.name: [] for step in steps}
    for step in steps:
        step.call()  # fills the caches, as the first record batch does
    gc.collect()
    gc.freeze()
    gc.disable()
    for _ in range(rounds):
        for step in random.sample(steps, len(steps)):
            began = time.process_time_ns()
            calls = 0
            while (
                calls < 3 or time.process_time_ns() - began < 2_000_000
            ):  # long compared with the cost of reading the clock
                step.call()
                calls += 1
            times[step.name].append((time.process_time_ns() - began) / (calls * step.rows))
    return times


def _instructions(step: Step, devices: int) -> float:
    """Return instructions per message: the difference of a run with 1 repetition and one with 21."""
    counts: list[int] = []
    for repeat in (1, 1, 21):  # the first run compiles changed files
        with tempfile.TemporaryDirectory() as directory:
            words = [*callgrind.command(Path(directory)), sys.executable, "-m", "bench.stages", "--type", step.name]
            done = subprocess.run(
                [*words, "--repeat", str(repeat), "--devices", str(devices)],
                cwd=Path(__file__).parents[1],
                env=callgrind.ENVIRONMENT,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"valgrind failed:\n{done.stderr[-1000:]}")
            counts += map(callgrind.instructions, callgrind.profiles(Path(directory)))
    return (counts[2] - counts[1]) / (20 * step.rows)


if __name__ == "__main__":
    sys.exit(main())
