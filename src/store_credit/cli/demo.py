"""`store-credit demo`: the real server on a throw-away database, and Digital River played over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from store_credit.webhooks import signature

UPSTREAM_ID = "7654-2345-0987-123456"
SESSION_ID = "7765374748"
START_SECONDS_MAX = 30
Json = dict[str, Any]
_COMMAND = [sys.executable, "-m", "store_credit"]


class PlayFailed(Exception):
    """The service did not answer as it should. The message says where."""


def play(*, once: bool, port: int) -> int:
    """Serve, play, and keep serving unless `once`. Returns the exit status."""
    # To be told to stop is as good as Ctrl-C, also in the background, where a shell has that ignored: the
    # server is stopped and its files are removed.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="store-credit-demo-") as folder:
        port = _free_port(port)
        environment = _environment(Path(folder))
        _issue_line(environment)
        with _served(environment, port) as server:
            try:
                Play(f"http://127.0.0.1:{port}", environment).run()
            except (PlayFailed, httpx.HTTPError) as error:
                sys.stderr.write(f"\nstore-credit: the play went wrong: {error}\n")
                return 1
            _run(environment, "lines", "show", UPSTREAM_ID)
            _run(environment, "audit")
            if not once:
                _say(_invitation(port, environment))
                with contextlib.suppress(KeyboardInterrupt):
                    server.wait()
    return 0


class Play:
    """Digital River's side of one checkout, each exchange shown and checked."""

    def __init__(self, url: str, environment: dict[str, str]) -> None:
        self._environment = environment
        self._client = httpx.Client(base_url=url, timeout=10)
        self._digital_river = httpx.BasicAuth(*_pair(environment, "CALLOUT"))
        self._merchant = httpx.BasicAuth(*_pair(environment, "MERCHANT"))

    def run(self) -> None:
        asked = {"sessionId": SESSION_ID, "amount": 11.4, "upstreamId": UPSTREAM_ID, "name": "Gift card"}
        approved = {"approval": True, "upstreamId": UPSTREAM_ID, "amount": 11.4}
        path = "/checkouts/store-credits"
        with self._client:
            _say("1. The shopper picks 11.40 of the store credit, and Digital River asks:")
            self._callout("POST", path, asked, 200, approved)
            _say("2. The shopper takes it off again:")
            self._callout("DELETE", f"{path}/{UPSTREAM_ID}", None, 204, None)
            _say("3. The shopper changes their mind:")
            self._callout("POST", path, asked, 200, approved)
            event = _order_event("event-1", "order-1", "source-1", SESSION_ID, 11.4)
            applied = {"id": event["id"], "state": "applied"}
            _say("4. The order is created; Digital River sends a signed event:")
            self._event(event, applied)
            _say("5. Digital River delivers the same event again, and nothing happens twice:")
            self._event(event, applied)
            self._check_figures()

    def _callout(
        self,
        method: str,
        path: str,
        body: Json | None,
        status: int,
        answer: Json | None,
    ) -> None:
        shown = json.dumps(body) if body is not None else ""
        _show(f"{method} {path}", shown)
        _check(self._client.request(method, path, json=body, auth=self._digital_river), status, answer)

    def _event(self, event: Json, answer: Json) -> None:
        body = json.dumps(event).encode()
        timestamp = str(int(time.time()))
        secret = self._environment["STORE_CREDIT_WEBHOOK_SECRETS"]
        header = f"{timestamp}, {signature.sign(timestamp, body, secret)}"
        _show("POST /webhooks/digital-river", f"{signature.HEADER}: {header}\n  {body.decode()}")
        headers = {signature.HEADER: header, "Content-Type": "application/json"}
        _check(self._client.post("/webhooks/digital-river", content=body, headers=headers), 200, answer)

    def _check_figures(self) -> None:
        found = self._client.get("/credit-lines", params={"upstreamId": UPSTREAM_ID}, auth=self._merchant)
        line = found.json()["data"][0]
        figures = {name: line[name] for name in ("balance", "held", "available")}
        if figures != {"balance": 88.6, "held": 0, "available": 88.6}:
            raise PlayFailed(f"the line should be worth 88.60 with nothing held, and shows {figures}")


def _order_event(event_id: str, order_id: str, source_id: str, session_id: str, amount: float) -> Json:
    source = {
        "id": source_id,
        "type": "customerCredit",
        "amount": amount,
        "currency": "USD",
        "upstreamId": UPSTREAM_ID,
    }
    order = {"id": order_id, "checkoutSessionId": session_id, "payment": {"sources": [source]}}
    return {"id": event_id, "type": "checkout_session.order.created", "data": {"object": order}}


def _check(response: httpx.Response, status: int, answer: Json | None) -> None:
    shown = response.text or "(no body)"
    sys.stdout.write(f"  -> {response.status_code} {shown}\n")
    found = response.json() if response.content else None
    if response.status_code != status or found != answer:
        raise PlayFailed(f"expected {status} {json.dumps(answer)}")


def _environment(folder: Path) -> dict[str, str]:
    """An environment of throw-away settings, without any of the caller's own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STORE_CREDIT_")}
    given = {
        "DATABASE_URL": f"sqlite:///{folder / 'demo.db'}",
        "CALLOUT_USERNAME": "digital-river",
        "CALLOUT_PASSWORD": secrets.token_urlsafe(12),
        "MERCHANT_USERNAME": "merchant",
        "MERCHANT_PASSWORD": secrets.token_urlsafe(12),
        "WEBHOOK_SECRETS": secrets.token_urlsafe(12),
        "LOG_LEVEL": "warning",
    }
    return inherited | {f"STORE_CREDIT_{name}": value for name, value in given.items()}


def _pair(environment: dict[str, str], role: str) -> tuple[str, str]:
    return environment[f"STORE_CREDIT_{role}_USERNAME"], environment[f"STORE_CREDIT_{role}_PASSWORD"]


def _issue_line(environment: dict[str, str]) -> None:
    _run(
        environment,
        *("lines", "issue", "--customer", "customer-1", "--currency", "USD", "--amount", "100.00"),
        *("--upstream-id", UPSTREAM_ID, "--name", "Gift card", "--reason", "Opening balance of the demo"),
    )


def _run(environment: dict[str, str], *arguments: str) -> None:
    _say(f"$ store-credit {shlex.join(arguments)}")
    subprocess.run([*_COMMAND, *arguments], env=environment, check=True)  # noqa: S603


@contextlib.contextmanager
def _served(environment: dict[str, str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    _say(f"$ store-credit serve --port {port}")
    server = subprocess.Popen([*_COMMAND, "serve", "--port", str(port)], env=environment)  # noqa: S603
    try:
        _wait_until_ready(server, port)
        yield server
    finally:
        server.terminate()
        server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=1).status_code == 200:
                sys.stdout.write(f"  serving on http://127.0.0.1:{port}\n")
                return
        time.sleep(0.05)
    raise SystemExit("store-credit: the server did not become ready.")


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise SystemExit("store-credit: no free port was found.")


def _invitation(port: int, environment: dict[str, str]) -> str:
    url = f"http://127.0.0.1:{port}"
    callout = shlex.quote(":".join(_pair(environment, "CALLOUT")))
    merchant = shlex.quote(":".join(_pair(environment, "MERCHANT")))
    secret = shlex.quote(environment["STORE_CREDIT_WEBHOOK_SECRETS"])
    asked = json.dumps({"sessionId": "my-session", "amount": 25, "upstreamId": UPSTREAM_ID})
    body = shlex.quote(json.dumps(_order_event("my-event", "my-order", "my-source", "my-session", 25)))
    database = shlex.quote(environment["STORE_CREDIT_DATABASE_URL"])
    show = shlex.join([*_COMMAND, "lines", "show", UPSTREAM_ID])
    json_body = "-H 'Content-Type: application/json' -d"
    return f"""The service keeps running; Ctrl-C ends it. Now play Digital River's part yourself:

# Ask for 25.00
curl -u {callout} {url}/checkouts/store-credits {json_body} {shlex.quote(asked)}

# Take it off again
curl -i -u {callout} -X DELETE {url}/checkouts/store-credits/{UPSTREAM_ID}

# An order spends it: sign the event and send it
body={body}
now=$(date +%s)
sign=$(printf '%s.%s' "$now" "$body" | openssl dgst -sha256 -hmac {secret} -binary | base64)
curl {url}/webhooks/digital-river -H "{signature.HEADER}: $now, $sign" {json_body} "$body"

# See what happened, over HTTP and on the command line
curl -u {merchant} '{url}/credit-lines?upstreamId={UPSTREAM_ID}'
curl -u {merchant} {url}/decisions
curl -u {merchant} {url}/webhook-events
STORE_CREDIT_DATABASE_URL={database} {show}
"""


def _show(what: str, body: str) -> None:
    sys.stdout.write(f"  {what}\n" + (f"  {body}\n" if body else ""))


def _say(text: str) -> None:
    sys.stdout.write(f"\n{text}\n")
    sys.stdout.flush()
