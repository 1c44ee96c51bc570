"""How callouts fare while opening balances are imported: `bench import`.

A real server on a real PostgreSQL answers authorizations, alone and then beside `store-credit import`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
import bench_load
from bench_app import serving
from bench_database import fill, postgresql_database, run_sql
from bench_load import BenchFailed, Load, Measured
from bench_requests import Access

REQUESTS_PER_SECOND_MAX = 8_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench import", description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000, help="to import")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--connections", type=int, default=8)
    options = parser.parse_args()
    try:
        _bench(options.lines, options.seconds, options.connections)
    except BenchFailed as error:
        sys.exit(f"bench: {error}")


def _bench(lines: int, seconds: float, connections: int) -> None:
    with contextlib.ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="store-credit-bench-")))
        url = cleanup.enter_context(postgresql_database(folder))
        run_sql(url, fill)
        access = Access()
        environment = bench.environment(url, access)
        server = cleanup.enter_context(serving("create_service", environment, folder))

        def measure() -> Measured:
            count = int(REQUESTS_PER_SECOND_MAX * seconds)
            requests = access.authorizations(secrets.token_hex(4), range(count))
            load = Load(server.port, requests, '"approval":true', seconds, connections)
            return bench_load.run(load, folder)

        measure()
        _tell("alone", measure())
        started = time.monotonic()
        importing = subprocess.Popen(
            [sys.executable, "-m", "store_credit", "import", str(_written(folder, lines))],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        try:
            while importing.poll() is None:
                _tell("beside the import", measure())
        finally:
            importing.terminate()
            importing.wait()
        if importing.returncode != 0:
            raise BenchFailed(f"the import ended with {importing.returncode}")
        sys.stdout.write(f"{lines} lines in {time.monotonic() - started:.1f} s, under that load\n")


def _written(folder: Path, lines: int) -> Path:
    path = folder / "lines.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["customerId", "currency", "amount", "upstreamId"])
        writer.writerows([f"customer-{n}", "USD", "10.00", f"imported-{n}"] for n in range(lines))
    return path


def _tell(what: str, measured: Measured) -> None:
    if measured.refused or not measured.answers:
        raise BenchFailed(f"{measured.refused} of {measured.answers} answers were no approvals")
    sys.stdout.write(
        f"authorize, {what}: {measured.per_second:.0f} requests/s,"
        f" p50 {measured.p50_ms:.1f} ms, p99 {measured.p99_ms:.1f} ms\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
