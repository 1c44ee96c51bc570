"""`scripts/fuzz`: the fuzz targets and the property tests for as long as you like, each time elsewhere.

The corpus stays in its folder, so that the next run goes on from there; so do the bytes of what is found.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import engine
from tests.fuzz.long_runs import LONG
from tests.fuzz.targets import TARGETS

PROPERTIES = ("tests/test_stateful.py", "tests/fuzz/test_service.py")
EXAMPLES_OF_A_ROUND = 100
SECONDS_OF_A_ROUND = 60
PROPERTY_SECONDS_MAX = 1_800


def main(arguments: Sequence[str] | None = None) -> int:
    """Search round by round until the time is up; at least one round. Returns 1 when anything was found."""
    options = _options(arguments)
    folder = Path(options.folder)
    end = time.monotonic() + options.minutes * 60
    seconds = max(1, min(SECONDS_OF_A_ROUND, int(options.minutes * 60 / (2 * len(TARGETS)))))
    findings = 0
    while True:
        number = random.randrange(1, 2**31)
        for target in TARGETS:
            findings += _told(target, parsers(target, folder, seconds=seconds, number=number))
        for path in PROPERTIES:
            findings += _told(path, properties(path, number))
        if time.monotonic() >= end:
            break
    print(f"{findings} found." if findings else "Nothing was found.")
    return 1 if findings else 0


def parsers(target: str, folder: Path, *, seconds: int, number: int) -> str | None:
    """Search in one target for some seconds; returns what was found, if anything."""
    if engine.GUIDED:
        return engine.guided(target, folder, seconds=seconds, number=number)
    try:
        engine.unguided(target, 500 * seconds, number)
    except Exception as error:
        return "".join([*getattr(error, "__notes__", []), repr(error)])
    return None


def properties(path: str, number: int) -> str | None:
    """Run the tests of a file with many examples; returns what they say when they fail."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--hypothesis-seed={number}",
    ]
    finished = subprocess.run(
        [*command, "--show-capture=no", path],
        cwd=engine.PROJECT,
        env=os.environ | {LONG: str(EXAMPLES_OF_A_ROUND)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PROPERTY_SECONDS_MAX,
        check=False,
    )
    return finished.stdout if finished.returncode else None


def _told(what: str, found: str | None) -> int:
    """Print what became of a search; returns the number of findings."""
    print(f"{what}: nothing found" if found is None else f"{what}: FOUND\n{found}", flush=True)
    return 0 if found is None else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to search")
    parser.add_argument("--folder", default=".fuzz", help="of the corpus, and of what is found")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes <= 7 * 24 * 60:
        parser.error("--minutes must be more than zero, and at most a week")
    options.folder = str(Path(options.folder).resolve())
    return options


if __name__ == "__main__":
    sys.exit(main())
