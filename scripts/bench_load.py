"""The bench's load: prepared requests over keep-alive connections, sent by a process of its own.

`wrk` sends them when it is installed; else this file does, run as a script. Each connection sends its
next request as soon as the last one was answered, and every answer is looked at.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import uvloop

SEPARATOR = b"\0"
GRACE_SECONDS = 30
"""What a client may take beyond its time, for reading the requests and for the last answers."""

_CONTENT_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)

_WRK_SCRIPT = """
local all = {}
function setup(thread) table.insert(all, thread) end

function init(arguments)
  expected, requests = arguments[2], {}
  for one in io.open(arguments[1], "rb"):read("*a"):gmatch("[^%z]+") do requests[#requests + 1] = one end
  sent, refused, example = 0, 0, ""
end

-- When the requests run out, what follows is refused, and so is noticed.
function request()
  sent = sent + 1
  return requests[sent] or "GET /exhausted HTTP/1.1\\r\\nHost: bench\\r\\n\\r\\n"
end

function response(status, headers, body)
  if status ~= 204 and (status ~= 200 or not body:find(expected, 1, true)) then
    refused = refused + 1
    if refused == 1 then example = status .. " " .. body:sub(1, 200) end
  end
end

function done(summary, latency)
  local errors, thread = summary.errors, all[1]
  local lost = errors.connect + errors.read + errors.write + errors.timeout
  print(string.format("RESULT %d %d %d %d %d %d %s", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), thread:get("refused"), lost, thread:get("example")))
end
"""


class BenchFailed(Exception):
    """The measurement is worth nothing; the message says why."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent where, for how long, and the text that each answer must hold which has a body."""

    port: int
    requests: Sequence[bytes]
    expected: str
    seconds: float
    connections: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What a client saw."""

    answers: int
    """Complete answers, expected or not."""
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: int
    """Answers other than 204, and 200 with the expected text; and connections that broke."""
    example: str
    """The first such answer."""

    @property
    def per_second(self) -> float:
        return self.answers / self.seconds


def wrk() -> str | None:
    """Where wrk is, if it is installed."""
    return shutil.which("wrk")


def run(load: Load, folder: Path) -> Measured:
    """Send the requests, in order, until the time is over. Raises BenchFailed."""
    requests = folder / "requests"
    requests.write_bytes(SEPARATOR.join(load.requests))
    found = wrk()
    command = _own_command(load, requests) if found is None else _wrk_command(found, load, requests, folder)
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=load.seconds + GRACE_SECONDS, check=True
        )
    except subprocess.CalledProcessError as error:
        raise BenchFailed(f"The client failed: {error.stderr[-2_000:]}") from None
    except subprocess.TimeoutExpired:
        raise BenchFailed("The client did not end in time.") from None
    return _own_result(ended.stdout) if found is None else _wrk_result(ended.stdout)


def _own_command(load: Load, requests: Path) -> list[str]:
    numbers = [str(load.port), str(load.connections), str(load.seconds)]
    return [sys.executable, __file__, str(requests), load.expected, *numbers]


def _own_result(output: str) -> Measured:
    return Measured(**json.loads(output))


def _wrk_command(found: str, load: Load, requests: Path, folder: Path) -> list[str]:
    script = folder / "load.lua"
    script.write_text(_WRK_SCRIPT, "utf-8")
    options = ["-t1", f"-c{load.connections}", f"-d{max(1, round(load.seconds))}s", "--timeout", "10s"]
    url = f"http://127.0.0.1:{load.port}/"
    return [found, *options, "-s", str(script), url, "--", str(requests), load.expected]


def _wrk_result(output: str) -> Measured:
    line = next((line for line in output.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise BenchFailed(f"wrk told no result: {output[-2_000:]}")
    numbers, example = line.split(" ", 7)[1:7], line.split(" ", 7)[7]
    answers, micros, p50, p99, refused, lost = (int(number) for number in numbers)
    return Measured(answers, micros / 1e6, p50 / 1e3, p99 / 1e3, refused + lost, example)


class _Run:
    """The requests that are left, and what came of those that were sent."""

    def __init__(self, requests: Iterator[bytes], expected: bytes) -> None:
        self.requests = requests
        self.expected = expected
        self.until = 0.0
        self.latencies: list[float] = []
        self.refused = 0
        self.example = ""

    def next(self) -> bytes | None:
        return next(self.requests, None) if time.perf_counter() < self.until else None

    def answered(self, seconds: float, answer: bytes) -> None:
        self.latencies.append(seconds)
        right = answer.startswith(b"HTTP/1.1 200 ") and self.expected in answer
        if not right and not answer.startswith(b"HTTP/1.1 204 "):
            self.refuse(answer)

    def refuse(self, what: bytes) -> None:
        self.refused += 1
        self.example = self.example or what[:1_000].decode("utf-8", "replace")


class _Connection(asyncio.Protocol):
    """One connection; `ended` is done when the last request that it sent was answered."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._received = b""
        self._sent_at = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        length = _CONTENT_LENGTH.search(head)
        if not blank or (length is not None and len(body) < int(length[1])):
            return
        self._run.answered(time.perf_counter() - self._sent_at, self._received)
        self._received = b""
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self._run.refuse(b"The connection broke.")
            self.ended.set_result(None)

    def send(self) -> None:
        request = self._run.next()
        if request is None:
            self.ended.set_result(None)
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)


async def _send_all(run: _Run, port: int, connections: int, seconds: float) -> Measured:
    connect = asyncio.get_running_loop().create_connection
    opened = [(await connect(lambda: _Connection(run), "127.0.0.1", port))[1] for _ in range(connections)]
    started = time.perf_counter()
    run.until = started + seconds
    for connection in opened:
        connection.send()
    await asyncio.gather(*(connection.ended for connection in opened))
    took, latencies = time.perf_counter() - started, sorted(run.latencies) or [0.0]
    p50, p99 = (latencies[len(latencies) * percent // 100] * 1e3 for percent in (50, 99))
    return Measured(len(run.latencies), took, p50, p99, run.refused, run.example)


def main(file: str, expected: str, port: str, connections: str, seconds: str) -> None:
    requests = filter(None, Path(file).read_bytes().split(SEPARATOR))
    run = _Run(requests, expected.encode())
    measured = uvloop.run(_send_all(run, int(port), int(connections), float(seconds)))
    sys.stdout.write(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main(*sys.argv[1:])
