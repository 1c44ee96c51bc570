"""Fills a database with years of data: lines, their journals, past holds, orders, events, decisions.

Every line has had the same life, of ten entries: four holds, two of them spent on orders, and a refund. One
line in two hundred holds credit now. The busiest line has past holds by the thousand. Figures, sequence
numbers and hash chains hang together, but the hashes are numbers: an audit would not believe them.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

BUSY_NUMBER = 0
"""The busiest line; the others are numbered from 1."""

YEARS_SECONDS = 2 * 365 * 86_400
_ENTRIES = (
    # kind, amount, held, balance after, held after, number of the hold, number of the deduction
    ("issued", 10_000, 0, 10_000, 0, None, None),
    ("held", 0, 1_140, 10_000, 1_140, 1, None),
    ("released", 0, -1_140, 10_000, 0, 1, None),
    ("held", 0, 1_140, 10_000, 1_140, 2, None),
    ("deducted", -1_140, -1_140, 8_860, 0, 2, 1),
    ("returned", 140, 0, 9_000, 0, None, 1),
    ("held", 0, 2_000, 9_000, 2_000, 3, None),
    ("hold_expired", 0, -2_000, 9_000, 0, 3, None),
    ("held", 0, 500, 9_000, 500, 4, None),
    ("deducted", -500, -500, 8_500, 0, 4, 2),
)
_BALANCE = 8_500
_HELD_NOW = 700
_HOLDS = ((1, 1_140, "released", None), (2, 1_140, "consumed", 1), (3, 2_000, "expired", None))
_HOLDS += ((4, 500, "consumed", 2),)
_DEDUCTIONS = ((1, 1_140, 140), (2, 500, 0))
_BUSY_BALANCE = 1_000_000_00
_TOLD = {"currency": "USD", "cancelled": {"by_id": {}, "largest_total": 0}, "captured": None}
_TOLD |= {"refunded": {"by_id": {"refund-1": 140}, "largest_total": 140}, "everything": False}
_TOLD |= {"references": [], "unmatched": False, "event_id": None, "what": "refund refund-1"}


def upstream_id(number: int) -> str:
    """Of the line of this number, as the statements below make it."""
    return f"grown-{number:020}"


def is_ordinary(number: int) -> bool:
    """Whether the line takes holds and has none."""
    return all(number % every for every in (97, 89)) and number % 200 != 3


def fill(connection: Connection, lines: int, past_holds: int, now: datetime) -> None:
    """Fill empty tables of the newest schema. `now` is the end of the years."""
    filling = _Filling(connection, lines, past_holds, now)
    indexes = filling.begin()
    filling.make_lines()
    filling.make_entries()
    filling.make_holds()
    filling.make_orders()
    filling.make_decisions()
    filling.make_events()
    filling.make_busy_line()
    for index in indexes:
        connection.exec_driver_sql(index)
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("ANALYZE")  # As PostgreSQL does by itself in time; SQLite never does.


class _Filling:
    """The statements, in the words of both databases."""

    def __init__(self, connection: Connection, lines: int, past_holds: int, now: datetime) -> None:
        self._connection = connection
        self._postgresql = connection.dialect.name == "postgresql"
        self._lines = lines
        self._past_holds = past_holds
        self._now = f"{now:%Y-%m-%d %H:%M:%S}"

    def begin(self) -> list[str]:
        """Take the indexes away that are made faster in one go; returns how to make them again."""
        if not self._postgresql:
            driver: Any = self._connection.connection.driver_connection
            driver.create_function("sha256", 1, _sha256, deterministic=True)
            return []
        for setting in ("statement_timeout = 0", "session_replication_role = replica"):
            self._run(f"SET LOCAL {setting}")
        self._run("SET LOCAL maintenance_work_mem = '512MB'")
        plain = (
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
            " AND indexname NOT IN (SELECT conname FROM pg_constraint)"
        )
        found = [tuple(row) for row in self._connection.exec_driver_sql(plain)]
        for name, _ in found:
            self._run(f"DROP INDEX {name}")
        return [definition for _, definition in found]

    def make_lines(self) -> None:
        holding = "i % 200 = 3"
        self._insert(
            "credit_line",
            {
                "id": self._id("cl", "i"),
                "upstream_id": self._name("grown-", "i"),
                "upstream_key": self._key(self._name("grown-", "i")),
                "customer_id": self._name("customer-", "i / 2"),
                "currency": "CASE WHEN i % 10 = 0 THEN 'EUR' ELSE 'USD' END",
                "status": "CASE WHEN i % 97 = 0 THEN 'suspended' WHEN i % 89 = 0 THEN 'closed' "
                "ELSE 'active' END",
                "balance": str(_BALANCE),
                "held": f"CASE WHEN {holding} THEN {_HELD_NOW} ELSE 0 END",
                "written_off": "0",
                "seq": f"CASE WHEN {holding} THEN {len(_ENTRIES) + 1} ELSE {len(_ENTRIES)} END",
                "head_hash": self._hash("i", f"CASE WHEN {holding} THEN 11 ELSE 10 END"),
                "metadata": "'{}'",
                "flags": "CASE WHEN i % 1000 = 1 THEN 'overdrawn' ELSE '' END",
                "expires_at": f"CASE WHEN i % 5 = 0 THEN {self._at('-365 * 86400')} END",
                "due_at": f"CASE WHEN i % 5 = 0 THEN {self._at('-365 * 86400')} END",
                "created_at": self._slice(1),
                "last_entry_at": self._slice(len(_ENTRIES)),
            },
        )

    def make_entries(self) -> None:
        rows = [(seq, *entry) for seq, entry in enumerate(_ENTRIES, 1)]
        columns = (
            "seq",
            "kind",
            "amount",
            "held",
            "balance_after",
            "held_after",
            "hold_no",
            "deduction_no",
        )
        entry = {
            "line_id": self._id("cl", "i"),
            **{name: f"t.{name}" for name in columns[:6]},
            "hold_id": self._id("hold", "i", "t.hold_no"),
            "deduction_id": self._id("ded", "i", "t.deduction_no"),
            "actor": "'digital-river'",
            "created_at": self._slice("t.seq"),
            "previous_hash": self._hash("i", "t.seq - 1"),
            "hash": self._hash("i", "t.seq"),
        }
        self._insert("ledger_entry", entry, self._values(columns, rows))
        last = (len(_ENTRIES) + 1, "held", 0, _HELD_NOW, _BALANCE, _HELD_NOW, 5, None)
        self._insert("ledger_entry", entry, self._values(columns, [last]), "i % 200 = 3")

    def make_holds(self) -> None:
        columns = ("no", "amount", "state", "deduction_no")
        hold = {
            "id": self._id("hold", "i", "t.no"),
            "line_id": self._id("cl", "i"),
            "session_id": self._name("session-", "i * 10 + t.no"),
            "session_upstream_id": self._name("cart-", "i * 10 + t.no"),
            "upstream_id": self._name("grown-", "i"),
            "upstream_key": self._key(self._name("grown-", "i")),
            "amount": "t.amount",
            "state": "t.state",
            "created_at": self._slice("2 * t.no"),
            "expires_at": self._slice("2 * t.no + 1"),
            "ended_at": self._slice("2 * t.no + 1"),
            "deduction_id": self._id("ded", "i", "t.deduction_no"),
        }
        self._insert("hold", hold, self._values(columns, _HOLDS))
        now = {"created_at": self._at("60"), "expires_at": self._at("-86400"), "ended_at": "NULL"}
        row = self._values(columns, [(5, _HELD_NOW, "open", None)])
        self._insert("hold", hold | now, row, "i % 200 = 3")

    def make_orders(self) -> None:
        """Deductions, and the sources that they are known by; one line in twenty has a parked return."""
        deduction = {
            "id": self._id("ded", "i", "t.no"),
            "line_id": self._id("cl", "i"),
            "source_id": self._name("source-", "i * 10 + t.no"),
            "upstream_id": self._name("grown-", "i"),
            "order_id": self._name("order-", "i * 10 + t.no"),
            "session_id": self._name("session-", "i * 10 + 2 * t.no"),
            "amount": "t.amount",
            "returned": "t.returned",
            "created_at": self._slice("5 * t.no"),
        }
        spent = self._values(("no", "amount", "returned"), _DEDUCTIONS)
        self._insert("deduction", deduction, spent)
        told = f"CASE WHEN t.returned > 0 THEN '{json.dumps(_TOLD)}' END"
        order = deduction["order_id"]
        self._insert("source", {"id": deduction["source_id"], "told": told, "order_id": order}, spent)
        parked = {
            "id": self._name("card-", "i"),
            "told": f"'{json.dumps(_TOLD)}'",
            "order_id": self._name("order-", "i * 10"),
            "parked_at": self._at("i % 2000000"),
        }
        self._insert("source", parked, where="i % 20 = 7")

    def make_decisions(self) -> None:
        columns = ("no", "kind", "amount", "hold_no")
        asked = [(1, "authorize", 1_140, 1), (2, "release", 1_140, 1), (3, "authorize", 1_140, 2)]
        asked += [(4, "authorize", 2_000, 3), (5, "authorize", 500, 4)]
        self._insert("decision", self._decision(), self._values(columns, asked))

    def make_events(self) -> None:
        """The events of both orders and the refund, with their claims; some wait. Offers, and markers."""
        columns = ("no", "type", "slice")
        types = [(1, "checkout_session.order.created", 5), (2, "order.refunded", 6)]
        types += [(3, "checkout_session.order.created", 10)]
        state = "CASE WHEN i % 2000 = 9 THEN 'unmatched' WHEN i % 20 = 7 THEN 'parked'"
        event = {
            "id": self._id("evt", "i", "t.no"),
            "event_id": self._name("event-", "i * 10 + t.no"),
            "fingerprint": self._hash("i", "t.no"),
            "type": "t.type",
            "state": f"{state} WHEN t.no = 2 AND i % 2 = 0 THEN 'ignored' ELSE 'applied' END",
            "order_id": self._name("order-", "i * 10 + t.no"),
            "effects": f"'{json.dumps([_EFFECT])}'",
            "body": f"'{json.dumps(_BODY)}'",
            "tries": "0",
            "received_at": self._slice("t.slice"),
        }
        kinds = self._values(columns, types)
        self._insert("webhook_event", event, kinds)
        claim = {"key": f"'event:' || {event['event_id']}", "fingerprint": event["fingerprint"]}
        self._insert("claim", claim | {"answer": "''", "created_at": event["received_at"]}, kinds)
        offer = {"upstream_id": self._id("offer", "i"), "line_id": self._id("cl", "i"), "amount": "1140"}
        offer |= {"expires_at": self._slice(3), "created_at": self._slice(2)}
        self._insert("offer", offer, where="i % 2 = 0")
        batch = {"id": self._id("batch", "i"), "created_at": self._at("i % 86400")}
        self._insert("ledger_batch", batch)

    def make_busy_line(self) -> None:
        """A line with so many past holds: each has two entries and a decision."""
        last, line = 1 + 2 * self._past_holds, self._pad(str(BUSY_NUMBER), 24)
        line_id, name = f"'cl_00' || {line}", self._name("grown-", str(BUSY_NUMBER))
        figures = {"balance": str(_BUSY_BALANCE), "held": "0", "written_off": "0", "seq": str(last)}
        times = {"created_at": self._at(str(YEARS_SECONDS)), "last_entry_at": self._at("3600")}
        texts = {"customer_id": "'busy'", "currency": "'USD'", "status": "'active'", "metadata": "'{}'"}
        names = {"id": line_id, "upstream_id": name, "upstream_key": self._key(name), "flags": "''"}
        whole = names | texts | figures | times | {"head_hash": self._pad(str(last), 64)}
        self._insert("credit_line", whole, where="i = 1")
        entry = {"line_id": line_id, "actor": "'digital-river'", "created_at": self._slice("9")}
        entry |= {"balance_after": str(_BUSY_BALANCE)}
        first = {"seq": "1", "kind": "'issued'", "amount": str(_BUSY_BALANCE), "held": "0"}
        first |= {"held_after": "0", "previous_hash": self._pad("0", 64), "hash": self._pad("1", 64)}
        self._insert("ledger_entry", entry | first, where="i = 1")
        moved = {"seq": "2 * i + t.more", "kind": "t.kind", "amount": "0", "held": "t.held"}
        moved |= {"held_after": "t.after", "hold_id": self._id("hold", "i", "6")}
        moved |= {
            "previous_hash": self._pad("2 * i + t.more - 1", 64),
            "hash": self._pad("2 * i + t.more", 64),
        }
        kinds = self._values(
            ("more", "kind", "held", "after"), [(0, "held", 10, 10), (1, "released", -10, 0)]
        )
        self._insert("ledger_entry", entry | moved, kinds, count=self._past_holds)
        of_line = {"line_id": line_id, "upstream_id": name, "upstream_key": self._key(name)}
        hold = of_line | {"id": self._id("hold", "i", "6"), "session_id": self._name("busy-", "i")}
        hold |= {"amount": "10", "state": "CASE WHEN i % 2 = 0 THEN 'released' ELSE 'expired' END"}
        hold |= {name: self._slice("9") for name in ("created_at", "expires_at", "ended_at")}
        self._insert("hold", hold, count=self._past_holds)
        asked = self._values(("no", "kind", "amount", "hold_no"), [(6, "authorize", 10, 6)])
        busy = {**self._decision(), **of_line, "session_id": self._name("busy-", "i")}
        self._insert("decision", busy, asked, count=self._past_holds)

    def _decision(self) -> dict[str, str]:
        return {
            "id": self._id("dec", "i", "t.no"),
            "kind": "t.kind",
            "line_id": self._id("cl", "i"),
            "upstream_id": self._name("grown-", "i"),
            "upstream_key": self._key(self._name("grown-", "i")),
            "session_id": self._name("session-", "i * 10 + t.hold_no"),
            "asked": "CAST(t.amount AS text)",
            "amount": "t.amount",
            "currency": "'USD'",
            "accepted": "t.no > 0",
            "reason": "CASE WHEN t.kind = 'release' THEN 'released' ELSE 'approved' END",
            "hold_id": self._id("hold", "i", "t.hold_no"),
            "actor": "'digital-river'",
            "request_id": self._pad("i * 10 + t.no", 32),
            "created_at": self._slice("2 * t.hold_no"),
        }

    def _insert(
        self,
        table: str,
        row: dict[str, str],
        templates: str = "t(no) AS (VALUES (1))",
        where: str = "true",
        count: int | None = None,
    ) -> None:
        """Insert a row for each number from 1 on and each template, where the condition holds."""
        last = self._lines if count is None else count
        numbers = f"n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {last})"
        self._run(
            f"WITH RECURSIVE {numbers}, {templates} INSERT INTO {table} ({', '.join(row)})"
            f" SELECT {', '.join(row.values())} FROM t CROSS JOIN n WHERE {where}"
        )

    def _values(self, names: tuple[str, ...], rows: Any) -> str:
        return f"t({', '.join(names)}) AS (VALUES {', '.join(map(_tuple, rows))})"

    def _id(self, prefix: str, number: str, part: str = "0") -> str:
        """An identifier of the length of a minted one, in the order of the parts of a line's life."""
        return f"'{prefix}_0' || ({part}) || {self._pad(number, 24)}"

    def _name(self, prefix: str, number: str) -> str:
        return f"'{prefix}' || {self._pad(number, 20)}"

    def _hash(self, number: str, seq: str) -> str:
        """64 digits, like a hash; that before the first entry is all zeros, as it must be."""
        first, other = self._pad("0", 64), self._pad(f"{number} * 100 + {seq}", 64)
        return f"CASE WHEN {seq} = 0 THEN {first} ELSE {other} END"

    def _slice(self, part: int | str) -> str:
        """A time in this part of the years, of which a line's life has eleven."""
        seconds = YEARS_SECONDS // 11
        return self._at(f"{YEARS_SECONDS} - ({part} - 1) * {seconds} - i % {seconds}")

    def _at(self, seconds_ago: str) -> str:
        if self._postgresql:
            return f"(timestamptz '{self._now}+00' - ({seconds_ago}) * interval '1 second')"
        return f"strftime('%Y-%m-%d %H:%M:%f000', '{self._now}', (-({seconds_ago})) || ' seconds')"

    def _pad(self, number: str, digits: int) -> str:
        if self._postgresql:
            return f"lpad(CAST({number} AS text), {digits}, '0')"
        return f"printf('%0{digits}d', {number})"

    def _key(self, text: str) -> str:
        return f"sha256(convert_to({text}, 'UTF8'))" if self._postgresql else f"sha256({text})"

    def _run(self, statement: str) -> None:
        self._connection.exec_driver_sql(statement)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _tuple(values: Any) -> str:
    return f"({', '.join('NULL' if value is None else repr(value) for value in values)})"


_EFFECT = {"kind": "deduct", "sourceId": "source-1", "upstreamId": "grown-1", "amount": 11.4}
_EFFECT |= {"currency": "USD", "outcome": "deducted", "detail": None}
_EFFECT |= {
    "creditLineId": "cl_01kajw2v9ye8g5q1bmbdsm0c9t",
    "deductionId": "ded_01kajw2v9ye8g5q1bmbdsm0c9t",
}
_SOURCE = {"id": "source-1", "type": "customerCredit", "amount": 11.4, "currency": "USD"}
_ORDER = {
    "id": "order-1",
    "email": "shopper@example.com",
    "currency": "USD",
    "checkoutSessionId": "session-1",
}
_ORDER |= {"payment": {"sources": [_SOURCE | {"upstreamId": "grown-1"}]}, "items": [{"skuId": "sku-1"}] * 8}
_BODY = {"id": "event-1", "type": "checkout_session.order.created", "data": {"object": _ORDER}}
