"""What strangers may send, and for how long: attacks on a real server, which goes on answering others."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from store_credit.webhooks import signature
from tests.raw_http import (
    AUTHORIZATION,
    SECONDS_MAX,
    Answer,
    Connection,
    ask,
    authorization,
    callout,
    chunked,
    is_held,
    memory_bytes,
    request,
)
from tests.server import (
    CALLOUT,
    CALLOUT_PATH,
    MERCHANT,
    WEBHOOK_PATH,
    WEBHOOK_SECRET,
    Server,
    http_client,
    poll,
    running,
)

CLIENT_SECONDS = 1.0
SLOWLY = 0.1
"""Seconds between two bytes."""
ANSWER_SECONDS = 1.0
"""What an ordinary callout may take, whatever else goes on."""
KIBIBYTE = 1024
MEBIBYTE = 1024 * KIBIBYTE
LINE = "gift-1"
HEALTH = request("GET", "/healthz")


@pytest.fixture(scope="module")
def server(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the whole module, impatient, with one credit line. At the end it is unharmed."""
    folder = tmp_path_factory.mktemp("protocol")
    url = f"sqlite:///{folder / 'store-credit.db'}"
    (folder / "store-credit.db").write_bytes(sqlite_template.read_bytes())
    with running(url, folder, CLIENT_TIMEOUT="1s", HOLD_TLL="zebra") as [server]:
        with http_client(server.url, MERCHANT) as merchant:
            line = {"customerId": "c-1", "currency": "USD", "amount": 1_000_000, "upstreamId": LINE}
            assert merchant.post("/credit-lines", json=line).status_code == 201
        assert_serves(server, within=SECONDS_MAX)
        yield server
        assert_serves(server)
        assert "Traceback" not in server.log


def assert_serves(server: Server, within: float = ANSWER_SECONDS) -> None:
    """An ordinary callout on a new connection is answered in time."""
    started = time.monotonic()
    with http_client(server.url, CALLOUT) as client:
        asked = {"sessionId": "ordinary", "amount": 1.0, "upstreamId": LINE}
        answer = client.post(CALLOUT_PATH, json=asked)
    assert (answer.status_code, answer.json()["approval"]) == (200, True)
    assert time.monotonic() - started < within


def assert_refused(answer: Answer, status: int, code: str) -> None:
    assert answer.status == status, answer
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"]
    assert answer.json["errors"][0]["code"] == code


def decisions_of(server: Server, session_id: str) -> list[object]:
    with http_client(server.url, MERCHANT) as merchant:
        found: list[object] = merchant.get("/decisions", params={"sessionId": session_id}).json()["data"]
        return found


# Size of the head


@pytest.mark.parametrize(
    "lines",
    [
        [b"X-Large: " + b"a" * 33 * KIBIBYTE],
        [b"X-Large: " + b"a" * MEBIBYTE],
        [b"X-%d: " % number + b"a" * 500 for number in range(80)],
        [b"X-%d: a" % number for number in range(100)],
        [b"X-%d: a" % number for number in range(10_000)],
    ],
    ids=["a large header", "a huge header", "large together", "many headers", "very many headers"],
)
def test_too_large_a_head_is_refused(server: Server, lines: Sequence[bytes]) -> None:
    assert_refused(ask(server, request("GET", "/healthz", *lines)), 431, "head_too_large")
    assert_serves(server)


def test_a_large_head_is_taken(server: Server) -> None:
    lines = [b"X-%d: " % number + b"a" * 310 for number in range(99)]
    with Connection(server) as connection:
        for _ in range(2):
            assert connection.send(request("GET", "/healthz", *lines)).answer().status == 200


@pytest.mark.parametrize("length", [9 * KIBIBYTE, MEBIBYTE])
def test_too_long_a_url_is_refused(server: Server, length: int) -> None:
    assert_refused(ask(server, request("GET", "/" + "a" * length)), 414, "uri_too_long")
    assert_serves(server)


def test_a_long_url_is_taken(server: Server) -> None:
    with Connection(server) as connection:
        assert connection.send(request("GET", "/" + "a" * 8_000)).answer().status == 404


def test_endless_heads_take_no_memory(server: Server) -> None:
    before = memory_bytes(server)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            connection = stack.enter_context(Connection(server))
            connection.send(b"GET / HTTP/1.1\r\nX-Endless: ")
            with contextlib.suppress(OSError):
                for _ in range(32):
                    connection.send(b"a" * MEBIBYTE)
        assert_serves(server)
        assert memory_bytes(server) - before < 64 * MEBIBYTE


# Time


@pytest.mark.parametrize(
    "begun", [b"GET /", b"POST /checkouts/store-credits HTTP/1.1\r\nHost: localhost\r\nX-Slow: a"]
)
def test_a_slow_head_is_refused(server: Server, begun: bytes) -> None:
    """Whether nothing more comes, or a byte now and then."""
    started = time.monotonic()
    with Connection(server) as silent, Connection(server) as slow:
        silent.send(begun)
        slow.send(begun).trickle(b"O" * 100, SLOWLY, SECONDS_MAX)
        assert_serves(server)
        for connection in (silent, slow):
            assert_refused(connection.answer(), 408, "request_timeout")
            assert connection.is_closed()
    assert time.monotonic() - started > CLIENT_SECONDS * 0.9


@pytest.mark.parametrize("transfer", [b"Content-Length: 500", b"Transfer-Encoding: chunked"])
def test_a_slow_body_is_refused_and_nothing_is_stored(server: Server, transfer: bytes) -> None:
    session = f"slow-{transfer[0]}"
    rest = authorization(LINE, session) if transfer.startswith(b"C") else b"1\r\n{\r\n" * 50
    head = request("POST", CALLOUT_PATH, AUTHORIZATION, b"Content-Type: application/json", transfer)
    with Connection(server) as silent, Connection(server) as slow:
        silent.send(head + rest[:6])
        slow.send(head + rest[:6]).trickle(rest[6:], SLOWLY, SECONDS_MAX)
        assert_serves(server)
        for connection in (silent, slow):
            answer = connection.answer()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert answer.json["type"] == "request_timeout"
            assert connection.is_closed()
    assert decisions_of(server, session) == []


def test_a_body_that_nobody_reads_ends_too(server: Server) -> None:
    with Connection(server) as connection:
        connection.send(request("GET", "/healthz", b"Content-Length: 500") + b"{")
        assert connection.answer().status == 200
        assert connection.is_closed()


def test_an_answer_that_nobody_reads_is_thrown_away(server: Server) -> None:
    with Connection(server) as connection:
        assert connection.send(HEALTH).answer().status == 200
        assert is_held(server, connection)
        connection.send(request("GET", "/openapi.json") * 100)
        poll(lambda: not is_held(server, connection), SECONDS_MAX)
    assert_serves(server)


# Many at once


def test_idle_connections_do_not_hinder_others(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(500):
            connection = stack.enter_context(Connection(server))
            if number % 2:
                connection.send(b"GET /healthz HTTP/1.1\r\nHost: ")
        for _ in range(20):
            assert_serves(server)


# Pipelining


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    with Connection(server) as connection:
        connection.send(
            HEALTH
            + callout(authorization(LINE, "pipelined", 2.0))
            + request("GET", "/nothing")
            + request("POST", CALLOUT_PATH, body=b"{}")
            + request("DELETE", f"{CALLOUT_PATH}/{LINE}", AUTHORIZATION)
            + request("HEAD", "/readyz")
            + HEALTH
        )
        assert connection.answer().json == {"status": "ok"}
        assert connection.answer().json == {"approval": True, "upstreamId": LINE, "amount": 2.0}
        assert [connection.answer().status for _ in range(3)] == [404, 401, 204]
        assert connection.answer(to_head=True).status == 200
        assert connection.answer().json == {"status": "ok"}


def test_a_refusal_waits_for_the_answers_before_it(server: Server) -> None:
    with Connection(server) as connection:
        connection.send(HEALTH + callout(authorization(LINE, "before")) + b"BAD\r\n\r\n" + HEALTH)
        assert [connection.answer().status for _ in range(3)] == [200, 200, 400]
        assert connection.is_closed()


def test_a_body_that_breaks_behind_other_requests(server: Server) -> None:
    broken = request("POST", CALLOUT_PATH, AUTHORIZATION, b"Transfer-Encoding: chunked") + b"zz\r\n"
    with Connection(server) as connection:
        connection.send(HEALTH + HEALTH + broken)
        assert [connection.answer().status for _ in range(3)] == [200, 200, 400]
        assert connection.is_closed()


def test_very_many_pipelined_requests_are_refused(server: Server) -> None:
    with Connection(server) as connection:
        connection.send(HEALTH * 5_000)
        answers = [connection.answer()]
        while answers[-1].status == 200:
            answers.append(connection.answer())
        assert len(answers) > 100
        assert_refused(answers[-1], 429, "too_many_requests")
        assert int(answers[-1].headers["retry-after"]) > 0
        assert connection.is_closed()
    assert_serves(server)


def test_a_body_that_does_not_come_makes_room_for_others(sqlite_url: str, tmp_path: Path) -> None:
    """Nobody needs to know a secret to send the head of an event."""
    with running(sqlite_url, tmp_path, CONNECTIONS="10") as [small], contextlib.ExitStack() as opened:
        signed = f"DigitalRiver-Signature: t={int(time.time())},v1=00".encode()
        head = request("POST", WEBHOOK_PATH, signed, body=b"x" * 100)[:-50]
        for _ in range(10):
            opened.enter_context(Connection(small)).send(head)
        time.sleep(0.2)
        for _ in range(5):
            with Connection(small) as probe:
                assert probe.send(HEALTH).answer().status == 200


# Other protocols


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
def test_an_upgrade_is_ignored_and_the_body_is_read(server: Server, protocol: bytes) -> None:
    lines = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + protocol, b"HTTP2-Settings: AAMAAABk")
    session = f"upgrade-{protocol.decode()}"
    asked = callout(authorization(LINE, session), *lines)
    with Connection(server) as connection:
        assert connection.send(asked).answer().json["approval"] is True
        connection.send(asked[:-10])
        time.sleep(0.05)
        assert connection.send(asked[-10:] + request("GET", "/healthz", *lines)).answer().json["approval"]
        assert connection.answer().json == {"status": "ok"}
    assert len(decisions_of(server, session)) == 2


def test_an_upgrade_does_not_undo_a_close(server: Server) -> None:
    lines = (b"Connection: close, upgrade", b"Upgrade: h2c")
    assert ask(server, request("GET", "/healthz", *lines)).json == {"status": "ok"}


@pytest.mark.parametrize(
    "preface",
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500],
    ids=["HTTP/2", "TLS"],
)
def test_another_protocol_is_refused(server: Server, preface: bytes) -> None:
    assert_refused(ask(server, preface), 400, "invalid_format")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_head_is_answered_as_get_without_the_body(server: Server, path: str) -> None:
    with Connection(server) as connection:
        got = connection.send(request("GET", path)).answer()
        told = connection.send(request("HEAD", path)).answer(to_head=True)
        assert (told.status, told.headers["content-length"]) == (200, str(len(got.body)))
        assert connection.send(HEALTH).answer().status == 200


# Bodies


def test_a_large_body_in_chunks_is_refused_readably(server: Server) -> None:
    """Also to a client that looks for the answer only when it has sent all."""
    head = request("POST", CALLOUT_PATH, AUTHORIZATION, b"Transfer-Encoding: chunked")
    answer = ask(server, head + chunked(*[b" " * 64 * KIBIBYTE] * 80))
    assert (answer.status, answer.json["errors"][0]["code"]) == (413, "payload_too_large")


def test_a_large_body_of_told_length_is_refused_readably(server: Server) -> None:
    answer = ask(server, callout(b" " * 5 * MEBIBYTE))
    assert (answer.status, answer.json["errors"][0]["code"]) == (413, "payload_too_large")


def test_an_endless_body_is_cut_off(server: Server) -> None:
    before = memory_bytes(server)
    with Connection(server) as connection:
        connection.send(request("POST", CALLOUT_PATH, AUTHORIZATION, b"Transfer-Encoding: chunked"))
        with pytest.raises(ConnectionError):
            connection.send((b"100000\r\n" + b" " * MEBIBYTE + b"\r\n") * 100)
    assert memory_bytes(server) - before < 16 * MEBIBYTE
    assert_serves(server)


@pytest.mark.parametrize(
    "framing",
    [
        b"2;" + b"a" * MEBIBYTE,
        b"0\r\nX-Trailer: " + b"a" * MEBIBYTE,
        b"0\r\n" + b"X-Trailer: a\r\n" * 80_000,
    ],
    ids=["an extension", "a trailer", "many trailers"],
)
def test_chunks_that_say_too_much_are_refused(server: Server, framing: bytes) -> None:
    head = request("POST", CALLOUT_PATH, AUTHORIZATION, b"Transfer-Encoding: chunked")
    assert_refused(ask(server, head + framing), 400, "invalid_format")


def test_a_body_in_tiny_chunks_is_taken(server: Server) -> None:
    head = request("POST", CALLOUT_PATH, AUTHORIZATION, b"Transfer-Encoding: chunked")
    body = authorization(LINE, "tiny-chunks") + b" " * 20_000
    with Connection(server) as connection:
        connection.send(head + chunked(*[bytes([byte]) for byte in body]))
        assert connection.answer().json["approval"] is True


def test_trailers_are_no_headers(server: Server) -> None:
    body = authorization(LINE, "trailers")
    head = request("POST", CALLOUT_PATH, b"Transfer-Encoding: chunked")
    with Connection(server) as connection:
        connection.send(head + chunked(body)[:-2] + AUTHORIZATION + b"\r\n\r\n")
        assert connection.answer().status == 401
    assert decisions_of(server, "trailers") == []


def test_a_compressed_body_is_refused_unread(server: Server) -> None:
    bomb = gzip.compress(b" " * 40 * MEBIBYTE)
    assert len(bomb) < 64 * KIBIBYTE
    before = memory_bytes(server)
    with Connection(server) as connection:
        answer = connection.send(callout(bomb, b"Content-Encoding: gzip")).answer()
        assert (answer.status, answer.json["errors"][0]["parameter"]) == (415, "Content-Encoding")
    assert memory_bytes(server) - before < 8 * MEBIBYTE


MANY_KEYS = json.dumps({f"a{number:05}": 0 for number in range(5_000)}).encode()
AWKWARD = {
    "nested lists": b'{"sessionId": ' + b"[" * 60_000,
    "nested objects": b'{"a":' * 13_000,
    "many keys": MANY_KEYS,
    "one key many times": b'{"a":0' + b',"a":0' * 10_000 + b"}",
    "many numbers": b'{"a":[' + b"1e99," * 13_000 + b"1]}",
    "a long number": b'{"amount":' + b"9" * 65_000 + b"}",
    "a long fraction": b'{"amount":1.' + b"9" * 65_000 + b"e-64000}",
}


@pytest.mark.parametrize("body", AWKWARD.values(), ids=AWKWARD.keys())
def test_awkward_json_is_refused_quickly(server: Server, body: bytes) -> None:
    assert len(body) <= 64 * KIBIBYTE + 16
    started = time.monotonic()
    with Connection(server) as connection:
        assert connection.send(callout(body)).answer().status in (400, 413)
    assert time.monotonic() - started < ANSWER_SECONDS
    assert_serves(server)


def test_an_event_of_100_000_nestings_is_refused(server: Server) -> None:
    body = b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    timestamp = str(int(time.time()))
    signed = f"{signature.HEADER}: {timestamp}, {signature.sign(timestamp, body, WEBHOOK_SECRET)}"
    started = time.monotonic()
    with Connection(server) as connection:
        connection.send(request("POST", WEBHOOK_PATH, signed.encode(), body=body))
        answer = connection.answer()
    assert time.monotonic() - started < ANSWER_SECONDS
    assert (answer.status, answer.json["errors"][0]["message"]) == (400, "The body is nested too deeply.")
    assert_serves(server)


# Metrics


def series(server: Server) -> set[str]:
    """The names and labels of all metrics, without their values."""
    lines = httpx.get(f"{server.url}/metrics", timeout=SECONDS_MAX, trust_env=False).text.splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def test_what_strangers_send_makes_no_new_series(server: Server) -> None:
    methods = ["GET", "POST", "HEAD", "PUT", "PROPFIND", "MKCOL", "REPORT", "QUERY"]
    with Connection(server) as connection:
        for method in methods:
            connection.send(request(method, "/unknown")).answer(to_head=method == "HEAD")
        series(server)  # To ask for them makes some of its own.
        before = series(server)
        for batch in range(125):
            asked = [(method, f"/{batch}-{number}/{method}") for number in range(10) for method in methods]
            connection.send(b"".join(request(*one) for one in asked))
            for method, _ in asked:
                assert connection.answer(to_head=method == "HEAD").status == 404
    for number in range(50):
        assert_refused(ask(server, request(f"METHOD{number}", "/healthz")), 400, "invalid_format")
    assert series(server) == before


# Settings


def test_an_unknown_setting_is_told_by_its_name(server: Server) -> None:
    told = [line for line in server.logged if line["event"] == "unknown_setting"]
    assert {line["name"] for line in told} == {"STORE_CREDIT_HOLD_TLL"}
    assert {line["level"] for line in told} == {"warning"}
    assert "zebra" not in server.log


def test_one_worker_makes_no_folder_for_metrics(server: Server) -> None:
    assert list(Path(server.environment["TMPDIR"]).glob("store-credit-metrics-*")) == []
