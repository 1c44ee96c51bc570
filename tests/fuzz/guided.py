"""One target under atheris, which looks for bytes that reach new branches: `guided TARGET FLAGS...`.

The flags are libFuzzer's. A finding is printed with its traceback, its bytes are kept, and the status
is not zero.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["store_credit"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    program, target, *flags = sys.argv
    atheris.Setup([program, *flags], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
