"""HTTP by hand, over plain sockets: for requests that no client library would send."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.server import CALLOUT, CALLOUT_PATH, Server

SECONDS_MAX = 15
"""For what must happen at all; the machine may have much else to do."""
AUTHORIZATION = b"Authorization: Basic " + base64.b64encode(":".join(CALLOUT).encode())


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One connection to a server. What is sent is up to the test."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), SECONDS_MAX)
        self._received = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Connection:
        self.socket.sendall(data)
        return self

    def send_in_pieces(self, data: bytes) -> None:
        """Byte by byte, as long as the server takes it."""
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            for byte in data:
                self.socket.sendall(bytes([byte]))

    def answer(self, *, to_head: bool = False) -> Answer:
        """The next answer, complete. The answer to HEAD has no body, whatever its headers say."""
        while b"\r\n\r\n" not in self._received:
            assert self._receive(), f"the connection ended within {self._received!r}"
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        size = 0 if to_head else int(headers.get("content-length", "0"))
        while len(self._received) < size:
            assert self._receive(), "the connection ended within a body"
        body, self._received = self._received[:size], self._received[size:]
        return Answer(int(first.split()[1]), headers, body)

    def is_closed(self) -> bool:
        """Wait until the server has ended the connection; nothing may come before that."""
        return self._received == b"" and not self._receive()

    def trickle(self, data: bytes, every: float, seconds: float) -> None:
        """Send a byte now and then, until the server answers or ends the connection."""
        deadline = time.monotonic() + seconds
        self.socket.settimeout(every)
        for byte in data:
            assert time.monotonic() < deadline, "it goes on taking bytes"
            try:
                self.socket.sendall(bytes([byte]))
                self._received += self.socket.recv(65_536)
                break
            except TimeoutError:
                continue
        self.socket.settimeout(SECONDS_MAX)

    def _receive(self) -> bytes:
        some = self.socket.recv(65_536)
        self._received += some
        return some


def request(method: str, path: str, *lines: bytes, body: bytes | None = None) -> bytes:
    """A request in HTTP/1.1; with a body, its length is told."""
    told = [b"Host: localhost", *lines]
    if body is not None:
        told += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    head = b"\r\n".join([f"{method} {path} HTTP/1.1".encode(), *told])
    return head + b"\r\n\r\n" + (body or b"")


def authorization(upstream_id: str, session_id: str, amount: float = 1.0) -> bytes:
    """The body of a question whether a session may use credit."""
    return json.dumps({"sessionId": session_id, "amount": amount, "upstreamId": upstream_id}).encode()


def callout(body: bytes, *lines: bytes) -> bytes:
    return request("POST", CALLOUT_PATH, AUTHORIZATION, *lines, body=body)


def chunked(*chunks: bytes) -> bytes:
    """A body in these chunks, with its end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def ask(server: Server, data: bytes) -> Answer:
    """The only answer on a connection of its own, which the server then closes."""
    with Connection(server) as connection:
        answer = connection.send(data).answer()
        assert connection.is_closed()
        return answer


def is_held(server: Server, connection: Connection) -> bool:
    """Whether the server process still has its end of the connection."""
    ends = f"0100007F:{server.port:04X} 0100007F:{connection.socket.getsockname()[1]:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    # What no process has any more has no inode.
    return any(" ".join(line[1:3]) == ends and line[9] != "0" for line in lines)


def memory_bytes(server: Server) -> int:
    """What the server process has in memory."""
    assert server._process is not None
    status = Path(f"/proc/{server._process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024
