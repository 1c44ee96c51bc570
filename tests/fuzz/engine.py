"""How a target is run: by atheris in a process of its own, or by hypothesis where there is no atheris."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

PROJECT = Path(__file__).parents[2]
BYTES_MAX = 600
SEEDS = 24
GRACE_SECONDS = 240
GUIDED = importlib.util.find_spec("atheris") is not None
"""atheris has wheels for Linux on x86-64 alone."""


def plant(corpus: Path, target: str) -> None:
    """Bytes to begin with, always the same: long ones reach far into a target at once."""
    corpus.mkdir(parents=True, exist_ok=True)
    chance = random.Random(target)
    for number in range(SEEDS):
        (corpus / f"seed-{number}").write_bytes(chance.randbytes(chance.randint(20, BYTES_MAX)))


def guided(
    target: str, folder: Path, *, runs: int | None = None, seconds: int | None = None, number: int = 1
) -> str | None:
    """Run a target under atheris, with its corpus in the folder; returns what it found, if anything.

    A number of runs from the same corpus and random `number` is always the same search.
    """
    corpus, found = folder / "corpus" / target, folder / "found"
    plant(corpus, target)
    found.mkdir(parents=True, exist_ok=True)
    limit = f"-runs={runs}" if runs is not None else f"-max_total_time={seconds}"
    flags = [limit, f"-seed={number}", f"-max_len={BYTES_MAX}", "-len_control=0", "-timeout=20"]
    command = [sys.executable, "-m", "tests.fuzz.guided", target, *flags]
    finished = subprocess.run(
        [*command, f"-artifact_prefix={found / target}-", "-verbosity=0", str(corpus)],
        cwd=PROJECT,
        env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": str(PROJECT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=(seconds or 0) + GRACE_SECONDS,
        check=False,
    )
    return finished.stdout if finished.returncode else None


def unguided(target: str, examples: int, number: int = 1) -> None:
    """Run a target under hypothesis; raises what it found, with the shortest bytes that show it."""

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.binary(max_size=BYTES_MAX))
    def run(found: bytes) -> None:
        TARGETS[target](found)

    run()
