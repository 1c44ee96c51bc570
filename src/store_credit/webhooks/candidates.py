"""Which credit lines an unmatched event may mean.

Connectors of Digital River that send no upstreamId make this an everyday question. What an operator
would look for comes first: the line that the session holds credit of, then lines of the
customer that the event names, in the right currency; those worth at least the amount before others.
"""

from __future__ import annotations

import json
from datetime import datetime

from sqlalchemy import Connection, RowMapping, or_, select, union

from store_credit import money
from store_credit.ledger.queries import LineFigures, held_by, settled
from store_credit.ledger.tables import credit_line
from store_credit.webhooks.effects import Effect
from store_credit.webhooks.events import Event, MalformedEvent, read

CANDIDATES_MAX = 10


def line_exists(connection: Connection, line_id: str) -> bool:
    return (
        connection.execute(select(credit_line.c.id).where(credit_line.c.id == line_id)).first() is not None
    )


def email_of(row: RowMapping) -> str | None:
    """The shopper's e-mail address, if the stored body holds it."""
    event = _event(row)
    return event.email if event is not None else None


def session_of(row: RowMapping) -> str | None:
    """The checkout session that the event names, if the stored body holds it."""
    event = _event(row)
    return event.session_id if event is not None else None


def candidates(
    connection: Connection, row: RowMapping, email: str | None, now: datetime
) -> list[LineFigures]:
    """Lines that the event's open deductions may mean, the likeliest first."""
    effects: list[Effect] = json.loads(row["effects"])
    currencies = {effect["currency"] for effect in effects if effect["kind"] == "deduct"} - {None}
    event = _event(row)
    found = [
        *(_of_session(connection, event.session_id) if event and event.session_id else []),
        *(_of_customer(connection, event.customer_names) if event else []),
    ]
    unique = list({line["id"]: line for line in found}.values())
    fitting = [line for line in unique if not currencies or line["currency"] in currencies]
    shown = settled(connection, fitting[: 2 * CANDIDATES_MAX], now) if fitting else []
    amounts = [effect["amount"] for effect in effects if effect["amount"] is not None]
    return sorted(shown, key=lambda line: not _covers(line, amounts))[:CANDIDATES_MAX]


def _of_session(connection: Connection, session_id: str) -> list[RowMapping]:
    lines = union(*held_by(session_id)).limit(CANDIDATES_MAX)
    statement = select(credit_line).where(credit_line.c.id.in_(lines))
    return list(connection.execute(statement).mappings())


def _of_customer(connection: Connection, names: frozenset[str]) -> list[RowMapping]:
    """Lines of a customer whose id is one of these, such as an e-mail address."""
    if not names:
        return []
    same = or_(*(credit_line.c.customer_id == name for name in sorted(names)))
    statement = select(credit_line).where(same).order_by(credit_line.c.id.desc())
    return list(connection.execute(statement.limit(CANDIDATES_MAX)).mappings())


def _covers(line: LineFigures, amounts: list[float]) -> bool:
    worth = money.to_number(line.balance, line.row["currency"])
    return bool(amounts) and worth >= max(amounts)


def _event(row: RowMapping) -> Event | None:
    if row["body"] is None:
        return None
    try:
        return read(json.loads(row["body"]))
    except (ValueError, MalformedEvent):
        return None
