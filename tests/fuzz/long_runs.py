"""How far the property tests go: a short way that is always the same, or far and each time elsewhere."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase

LONG = "FUZZ_EXAMPLES"
"""How many examples each property gets in a long run, when this is set."""


def reach(examples: int, steps: int) -> dict[str, Any]:
    """The settings of hypothesis for so many examples of so many steps, in a short run."""
    long = int(os.environ.get(LONG, "0"))
    return {
        "max_examples": long or examples,
        "stateful_step_count": 3 * steps if long else steps,
        "derandomize": not long,
        "deadline": None,
        "database": None,
        "print_blob": bool(long),
        "phases": [Phase.generate, Phase.shrink],
        "suppress_health_check": list(HealthCheck),
    }


def databases(short: list[str]) -> list[str]:
    """On which databases a property is tried: on both in a long run."""
    return ["sqlite", "postgresql"] if os.environ.get(LONG) else short
