"""How much of each fault: a short form in `scripts/test`, a long one in `scripts/faults`."""

from __future__ import annotations

import os
import random

LONG = os.environ.get("FAULTS") == "long"

KILLS = 30 if LONG else 3
RESTARTS = 6 if LONG else 1
CUTS = 60 if LONG else 8
PAUSE_SECONDS = 10.0 if LONG else 3.0
CONFLICTS = 200 if LONG else 12
JUMPS = 10 if LONG else 2
LOCKED_SECONDS = 10.0 if LONG else 4.0
OVERLOAD_SECONDS = 30.0 if LONG else 4.0

ANSWERS_BETWEEN = (20, 200) if LONG else (10, 80)
"""The next fault comes after a random number of further answers between these two."""


def seeded() -> random.Random:
    """Chance that can be had again: `FAULTS_SEED` repeats the seed that a run printed."""
    seed = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"FAULTS_SEED={seed}")  # noqa: T201
    return random.Random(seed)
