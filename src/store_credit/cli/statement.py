"""A credit line's statement, for people: what it is worth, what is promised, how that came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from sqlalchemy import Connection, select

from store_credit import money
from store_credit.callouts.queries import DecisionFilter, decisions
from store_credit.cli.session import plain
from store_credit.ledger import queries
from store_credit.ledger.pages import Page
from store_credit.ledger.queries import LineFigures
from store_credit.ledger.state import EntryKind, HoldState
from store_credit.ledger.tables import deduction, hold, ledger_entry

OPEN_HOLDS_SHOWN = 20
DECISIONS_SHOWN = 8
RULE_WIDTH_MAX = 120

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Story:
    """All that a statement tells, read at one moment."""

    line: LineFigures
    at: datetime
    entries: Sequence[Row]
    """The newest ones, oldest first."""
    holds: Mapping[str, Row]
    """By id: those that the entries speak of."""
    deductions: Mapping[str, Row]
    open_holds: Sequence[Row]
    """Those that end first; one more than is shown when there are more."""
    decisions: Sequence[Row]
    """The newest ones."""
    has_more_decisions: bool


def tell(connection: Connection, name: str, now: datetime, entries_max: int) -> Story | None:
    """The story of the line with this id or upstream id, or None."""
    line_id = queries.line_id_of(connection, name)
    line = queries.line(connection, line_id, now) if line_id is not None else None
    if line is None or line_id is None:
        return None
    newest = select(ledger_entry).where(ledger_entry.c.line_id == line_id)
    newest = newest.order_by(ledger_entry.c.seq.desc()).limit(entries_max)
    entries = [dict(row) for row in connection.execute(newest).mappings()][::-1]
    is_open = (hold.c.line_id == line_id, hold.c.state == HoldState.OPEN.value, hold.c.expires_at > now)
    open_holds = select(hold).where(*is_open).order_by(hold.c.expires_at).limit(OPEN_HOLDS_SHOWN + 1)
    newest_answers, more = decisions(connection, DecisionFilter(line_id=line_id), Page(DECISIONS_SHOWN))
    return Story(
        line=line,
        at=now,
        entries=entries,
        holds=_by_id(connection, hold, {row["hold_id"] for row in entries}),
        deductions=_by_id(connection, deduction, {row["deduction_id"] for row in entries}),
        open_holds=[dict(row) for row in connection.execute(open_holds).mappings()],
        decisions=[dict(row) for row in newest_answers],
        has_more_decisions=more,
    )


def print_statement(console: Console, story: Story) -> None:
    """Print the story: figures first, then what is promised, then the journal, then the answers."""
    row = story.line.row
    title = plain(row["upstream_id"])
    title.stylize("bold")
    console.print(Rule(title, align="left"), width=min(console.width, RULE_WIDTH_MAX))
    console.print(_facts(story))
    if story.open_holds:
        is_cut = len(story.open_holds) > OPEN_HOLDS_SHOWN
        left_out = f" [dim]the {OPEN_HOLDS_SHOWN} that end first; there are more[/]" if is_cut else ""
        console.print("\n[bold]Promised now[/]" + left_out)
        console.print(_holds(story))
    console.print("\n[bold]What happened[/]" + _left_out(story))
    console.print(_journal(story))
    if story.decisions:
        more = " [dim](there are earlier ones)[/]" if story.has_more_decisions else ""
        console.print("\n[bold]Last answers to Digital River[/]" + more)
        console.print(answers(story.decisions, of_one_line=True))


def when(moment: datetime | None) -> str:
    """A time as people read it, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def has_moved(kind: str, amount: int) -> bool:
    """Whether an entry undoes what an order spent, or what came back of it: that is on another line now."""
    return amount > 0 if kind == EntryKind.DEDUCTED else amount < 0 and kind == EntryKind.RETURNED


def _facts(story: Story) -> Table:
    line, row = story.line, story.line.row
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("Available", Text(_amount(story, line.available), style="bold green"))
    table.add_row("Balance", f"{_amount(story, line.balance)}, of which {_amount(story, line.held)} held")
    table.add_row("Status", Text(_status(story), style="" if line.status == "active" else "bold yellow"))
    table.add_row("Customer", plain(row["customer_id"]))
    if row["name"]:
        table.add_row("Name", plain(row["name"]))
    table.add_row("Id", row["id"])
    table.add_row("Upstream id", plain(row["upstream_id"]))
    table.add_row("Opened", f"{when(row['created_at'])} UTC")
    if line.flags:
        table.add_row("Needs a look", Text(", ".join(line.flags), style="bold red"))
    return table


def _status(story: Story) -> str:
    expires = story.line.row["expires_at"]
    if expires is None:
        return f"{story.line.status}, never expires"
    verb = "expired" if expires <= story.at else "expires"
    return f"{story.line.status}, {verb} {when(expires)} UTC"


def _holds(story: Story) -> Table:
    table = _table("Session", ">Amount", "Since", "Until", "Hold")
    for row in story.open_holds[:OPEN_HOLDS_SHOWN]:
        table.add_row(
            plain(row["session_id"]),
            _amount(story, row["amount"]),
            when(row["created_at"]),
            when(row["expires_at"]),
            row["id"],
        )
    return table


def _journal(story: Story) -> Table:
    table = _table("#", "When (UTC)", "What", ">Amount", ">Balance", ">Held", "By", "Why")
    currency = story.line.row["currency"]
    for row in story.entries:
        table.add_row(
            str(row["seq"]),
            when(row["created_at"]),
            plain(_what(story, row)),
            _signed(row["amount"], currency),
            f"{money.to_decimal(row['balance_after'], currency):,}",
            f"{money.to_decimal(row['held_after'], currency):,}",
            plain(row["actor"]),
            plain(_why(row)),
        )
    return table


def answers(found: Sequence[Row], *, of_one_line: bool) -> Table:
    """Answers to Digital River, with the upstream ids that were asked for unless they are `of_one_line`."""
    ids = [] if of_one_line else ["Upstream id"]
    table = _table("When (UTC)", "Question", ">Asked for", ">Granted", "Answer", *ids, "Session")
    for row in found:
        granted = row["accepted"] and row["kind"] == "authorize"
        table.add_row(
            when(row["created_at"]),
            row["kind"],
            row["asked"] or "",
            money.to_text(row["amount"], row["currency"]) if granted else "",
            Text(_answer(row), style="green" if row["accepted"] else "yellow"),
            *(plain(row["upstream_id"]) for _ in ids),
            plain(row["session_id"] or ""),
        )
    return table


def _answer(row: Row) -> str:
    """Yes or no, and why: `declined: line expired`."""
    yes, no = ("approved", "declined") if row["kind"] == "authorize" else ("released", "ignored")
    verdict, reason = yes if row["accepted"] else no, row["reason"].replace("_", " ")
    return reason if reason.startswith(verdict) else f"{verdict}: {reason}"


def _what(story: Story, row: Row) -> str:
    """One entry as a person would say it."""
    session = story.holds.get(row["hold_id"] or "", {}).get("session_id")
    spent = story.deductions.get(row["deduction_id"] or "", {})
    order = spent.get("order_id") or spent.get("source_id")
    moved = has_moved(row["kind"], row["amount"])
    held = f"{money.to_decimal(abs(row['held']), story.line.row['currency']):,}"
    return {
        EntryKind.ISSUED: "Issued",
        EntryKind.ADJUSTED: "Adjusted",
        EntryKind.HELD: f"Held {held} for session {session}",
        EntryKind.HOLD_CHANGED: f"Changed the hold of session {session}"
        + (f" by {_signed(row['held'], story.line.row['currency'])}" if row["held"] else ", new expiry"),
        EntryKind.RELEASED: f"Released {held} of session {session}"
        + (f", spent on order {order}" if order else ""),
        EntryKind.HOLD_EXPIRED: f"Hold of {held} expired, session {session}",
        EntryKind.DEDUCTED: f"{'Moved away:' if moved else 'Spent on'} order {order}"
        + (", which overdrew it" if row["amount"] < 0 and _is_overdrawn(row) else ""),
        EntryKind.RETURNED: f"{'Moved away: return,' if moved else 'Returned from'} order {order}",
        EntryKind.EXPIRED: "Expired: written off",
        EntryKind.VOIDED: "Voided",
        EntryKind.WRITE_OFF_REVERSED: "Write-off reversed",
        EntryKind.SUSPENDED: "Suspended",
        EntryKind.RESUMED: "Resumed",
        EntryKind.CLOSED: "Closed",
        EntryKind.REOPENED: "Reopened",
        EntryKind.EXPIRY_SET: "Expiry changed",
        EntryKind.FLAGGED: "Flagged",
        EntryKind.FLAG_CLEARED: "Flag cleared",
        EntryKind.DESCRIBED: "Description changed",
    }[EntryKind(row["kind"])]


def _is_overdrawn(row: Row) -> bool:
    return bool(row["balance_after"] < max(0, row["held_after"]))


def _why(row: Row) -> str:
    event = f"event {row['event_id']}" if row["event_id"] else None
    return "; ".join(part for part in (row["reason"], event) if part)


def _signed(amount: int, currency: str) -> str:
    return f"{money.to_decimal(amount, currency):+,}" if amount else ""


def _amount(story: Story, minor: int) -> str:
    return money.to_text(minor, story.line.row["currency"])


def _left_out(story: Story) -> str:
    earlier = story.entries[0]["seq"] - 1 if story.entries else 0
    return f" [dim](after {earlier:,} earlier entries)[/]" if earlier else ""


def _table(*headings: str) -> Table:
    """A plain table; a heading that starts with `>` is of a column of figures."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        figures = heading.startswith(">")
        table.add_column(
            heading.removeprefix(">"),
            justify="right" if figures else "left",
            no_wrap=figures or heading.startswith("When"),
            overflow="fold",
        )
    return table


def _by_id(connection: Connection, table: Any, ids: set[str | None]) -> dict[str, Row]:
    wanted = [found for found in ids if found is not None]
    rows = connection.execute(select(table).where(table.c.id.in_(wanted))).mappings()
    return {row["id"]: dict(row) for row in rows}
