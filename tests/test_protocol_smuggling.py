"""Requests that two servers may read in two ways: refused, and nothing after them is read.

Each is sent together with a second request, which a server that was misled would answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.raw_http import AUTHORIZATION, Connection, ask, request
from tests.server import CALLOUT_PATH, Server, running

HEAD = request("POST", CALLOUT_PATH, AUTHORIZATION, b"Content-Type: application/json")[:-2]
SMUGGLED = request("GET", "/healthz")
CHUNKED = b"Transfer-Encoding: chunked\r\n"
END = b"0\r\n\r\n"


@pytest.fixture(scope="module")
def server(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("smuggling")
    (folder / "store-credit.db").write_bytes(sqlite_template.read_bytes())
    with running(f"sqlite:///{folder / 'store-credit.db'}", folder) as [server]:
        yield server
        assert server.is_running
        assert "Traceback" not in server.log


AMBIGUOUS = {
    "length and chunks": HEAD + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n" + END,
    "chunks and length": HEAD + CHUNKED + b"Content-Length: 5\r\n\r\n" + END,
    "two lengths": HEAD + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    "the same length twice": HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list of lengths": HEAD + b"Content-Length: 2, 2\r\n\r\n{}",
    "a negative length": HEAD + b"Content-Length: -2\r\n\r\n{}",
    "a length with a plus": HEAD + b"Content-Length: +2\r\n\r\n{}",
    "a length with a space": HEAD + b"Content-Length: 2 2\r\n\r\n{}",
    "a hexadecimal length": HEAD + b"Content-Length: 0x2\r\n\r\n{}",
    "an empty length": HEAD + b"Content-Length:\r\n\r\n",
    "a length that overflows": HEAD + b"Content-Length: 18446744073709551618\r\n\r\n{}",
    "chunked, identity": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n" + END,
    "identity, chunked": HEAD + b"Transfer-Encoding: identity, chunked\r\n\r\n" + END,
    "gzip, chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + END,
    "chunked twice": HEAD + CHUNKED + CHUNKED + b"\r\n" + END,
    "chunked, then identity": HEAD + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n" + END,
    "identity": HEAD + b"Transfer-Encoding: identity\r\n\r\n" + END,
    "xchunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + END,
    "quoted": HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n' + END,
    "a parameter": HEAD + b"Transfer-Encoding: chunked;q=1\r\n\r\n" + END,
    "an empty encoding": HEAD + b"Transfer-Encoding:\r\n\r\n" + END,
    "a vertical tab": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + END,
    "a space before the name": HEAD + b" Transfer-Encoding: chunked\r\n\r\n" + END,
    "a space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n" + END,
    "a space before the length's colon": HEAD + b"Content-Length : 2\r\n\r\n{}",
    "a tab before the colon": HEAD + b"Content-Length\t: 2\r\n\r\n{}",
    "a folded header": HEAD + b"X-Folded: a\r\n Content-Length: 2\r\n\r\n",
    "a folded encoding": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + END,
    "chunks in HTTP/1.0": HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNKED + b"\r\n" + END,
    "a bare line feed": HEAD + b"X-Bare: a\nContent-Length: 2\r\n\r\n{}",
    "bare line feeds": HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n{}",
    "a bare carriage return": HEAD + b"X-Bare: a\rContent-Length: 2\r\n\r\n{}",
    "a line feed that ends the head": HEAD + b"Content-Length: 2\r\n\n{}",
    "a NUL": HEAD + b"X-Nul: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
    "no colon": HEAD + b"Content-Length\r\n\r\n",
    "no name": HEAD + b": 2\r\n\r\n",
    "two hosts": HEAD + b"Host: elsewhere\r\nContent-Length: 2\r\n\r\n{}",
    "no host": HEAD.replace(b"Host: localhost\r\n", b"") + b"Content-Length: 2\r\n\r\n{}",
    "HTTP/0.9": b"GET /healthz HTTP/0.9\r\nHost: localhost\r\n\r\n",
    "no version": b"GET /healthz\r\n\r\n",
    "HTTP/1.2": b"GET /healthz HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "a space in the URL": b"GET /healthz HTTP/1.1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a tunnel": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no path": b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bytes in the URL": b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
BROKEN_CHUNKS = {
    "a size that overflows": b"10000000000000002\r\n{}\r\n",
    "a size that wraps": b"FFFFFFFFFFFFFFFFF\r\n{}\r\n",
    "a negative size": b"-2\r\n{}\r\n",
    "a size with 0x": b"0x2\r\n{}\r\n",
    "a size with a space": b"2 \r\n{}\r\n",
    "no size": b"\r\n{}\r\n",
    "an extension with a line feed": b"2;a\n{}\r\n",
    "line feeds": b"2\n{}\n",
    "a chunk longer than its size": b"2\r\n{}XX\r\n",
    "a trailer with a line feed": b"0\r\nX-Trailer: a\n\r\n",
}
REFUSED = AMBIGUOUS | {
    name: HEAD + CHUNKED + b"\r\n" + chunks + END for name, chunks in BROKEN_CHUNKS.items()
}


@pytest.mark.parametrize("sent", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_an_ambiguous_request_is_refused(server: Server, sent: bytes) -> None:
    assert_refused_alone(server, sent)


@pytest.mark.parametrize("chunks", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS.keys())
@pytest.mark.parametrize("authorized", [True, False])
def test_a_broken_body_is_refused(server: Server, chunks: bytes, authorized: bool) -> None:
    head = HEAD if authorized else HEAD.replace(AUTHORIZATION, b"X-Nobody: 1")
    assert_refused_alone(server, head + CHUNKED + b"\r\n" + chunks + END)


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED.keys())
def test_it_is_refused_also_byte_by_byte(server: Server, sent: bytes) -> None:
    """What the parser remembers from one piece to the next makes no difference."""
    with Connection(server) as connection:
        connection.send_in_pieces(sent + SMUGGLED)
        assert connection.answer().status == 400
        assert connection.is_closed()


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED.keys())
def test_an_upgrade_hides_nothing(server: Server, sent: bytes) -> None:
    first, line, rest = sent.partition(b"\r\n")
    assert_refused_alone(server, first + line + b"Connection: upgrade\r\nUpgrade: h2c\r\n" + rest)


def assert_refused_alone(server: Server, sent: bytes) -> None:
    answer = ask(server, sent + SMUGGLED)
    assert answer.status == 400
    assert answer.headers["connection"] == "close"
    assert answer.json["type"] == "bad_request"
    assert not re.search("localhost|elsewhere", answer.json["errors"][0]["message"])


def test_a_body_that_looks_like_a_request_is_none(server: Server) -> None:
    with Connection(server) as connection:
        connection.send(request("GET", "/healthz", body=SMUGGLED) + request("GET", "/nothing"))
        assert [connection.answer().status for _ in range(2)] == [200, 404]


def test_nothing_is_read_after_a_close(server: Server) -> None:
    answer = ask(server, request("GET", "/nothing", b"Connection: close") + SMUGGLED)
    assert answer.status == 404
