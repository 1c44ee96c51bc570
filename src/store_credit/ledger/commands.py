"""What can be asked of the ledger: everything that changes money is one of these commands.

Commands are plain values. Amounts that come from Digital River are still decimals here, because
only the credit line knows its currency; `*_minor` amounts are in the currency's minor unit.
Identifiers of new rows are minted by the caller, so that the rules stay pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, NamedTuple


class Cause(NamedTuple):
    """Who or what caused a change, as the journal will tell it."""

    actor: str
    """The name of a credential, `digital-river`, `system`, or a user of the command line."""
    reason: str | None = None
    event_id: str | None = None
    """Digital River's id of the webhook event."""
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Issue:
    """Open a credit line worth `amount_minor`."""

    line_id: str
    upstream_id: str
    """The identifier by which Digital River knows the line; unique for ever."""
    customer_id: str
    currency: str
    amount_minor: int
    cause: Cause
    name: str | None = None
    icon_url: str | None = None
    last_four: str | None = None
    expires_at: datetime | None = None
    allow_partial: bool | None = None
    """Approve what is left when more is asked; None follows the service's setting."""
    metadata: dict[str, object] = field(default_factory=dict)


class Authorize(NamedTuple):
    """May this session use this much of this credit line? Opens or replaces the session's hold."""

    upstream_id: str
    session_id: str
    amount: Decimal
    hold_id: str
    """The identifier of the hold, should a new one be opened."""
    cause: Cause
    session_upstream_id: str | None = None


class Release(NamedTuple):
    """The credit was taken off again, by a session that is not named."""

    upstream_id: str
    cause: Cause


class Deduct(NamedTuple):
    """An order spent credit: booked once per `source_id`, for ever."""

    source_id: str
    """Digital River's identifier of the payment source."""
    upstream_id: str | None
    order_id: str | None
    session_id: str | None
    """The checkout session whose hold is consumed; an event without a session touches no hold."""
    amount: Decimal
    currency: str | None
    """The source's currency, else the order's; None means the line's own."""
    deduction_id: str
    """The identifier of the deduction, should one be booked."""
    cause: Cause
    line_id: str | None = None
    """The line that an operator named, whatever the upstream id says. A source that was deducted from
    another line moves to this one."""


class Part(NamedTuple):
    """One cancel or refund that is complete. Digital River leaves out the id in some payloads."""

    id: str | None
    amount: Decimal
    charge_id: str | None = None


class CancelledCharge(NamedTuple):
    """One of a source's charges that was cancelled: all of it came back but what was captured."""

    id: str
    amount: Decimal
    captured: Decimal


class Return(NamedTuple):
    """What was cancelled and refunded so far of one source, as far as one payload tells.

    Payloads are cumulative or partial, repeated and out of order; only the increase is booked.
    """

    source_id: str
    order_id: str | None
    currency: str | None
    """The charge's currency, else the order's; None means the line's own."""
    what: str
    """What happened, for the journal: `refund 5b3c...`, `order cancelled`."""
    cause: Cause
    cancels: tuple[Part, ...] = ()
    refunds: tuple[Part, ...] = ()
    captured: Decimal | None = None
    """A charge that does not say its amount is cancelled, but for this much that was captured before."""
    charges: tuple[CancelledCharge, ...] = ()
    """Cancelled charges, each with its own amount: a source may have several."""
    everything: bool = False
    """All that is left comes back: the order was cancelled or blocked."""
    reference: str | None = None
    """Opaque to the ledger: handed back by the deduction that a parked return waited for."""


class Adjust(NamedTuple):
    """Correct a line's balance by a signed amount; needs a reason."""

    line_id: str
    amount: Decimal
    """Signed; in the line's own currency."""
    cause: Cause


class SetStatus(NamedTuple):
    """Suspend, resume, close or reopen a line."""

    line_id: str
    action: Literal["suspend", "resume", "close", "reopen"]
    cause: Cause


class SetExpiry(NamedTuple):
    """Change when a line expires; None means never."""

    line_id: str
    expires_at: datetime | None
    cause: Cause


class SetFlag(NamedTuple):
    """Mark a line for an operator, or take the mark off."""

    line_id: str
    flag: str
    raised: bool
    cause: Cause


class Describe(NamedTuple):
    """Change what a line is called and how it is shown; figures stay."""

    line_id: str
    changes: Mapping[str, object]
    """New values of `name`, `icon_url`, `last_four`, `allow_partial`, `metadata`."""
    cause: Cause


class ReleaseHolds(NamedTuple):
    """End holds by name: one hold, or all that a session has open."""

    holds: tuple[str, ...]
    """Their ids, as looked up before; those that ended meanwhile are left alone."""
    line_ids: tuple[str, ...]
    """Of the lines that they stand on."""
    cause: Cause


class Settle(NamedTuple):
    """Release what is past its time on a line that nobody else touches."""

    line_id: str
    cause: Cause = Cause(actor="system")


Command = (
    Issue
    | Authorize
    | Release
    | Deduct
    | Return
    | Adjust
    | SetStatus
    | SetExpiry
    | SetFlag
    | Describe
    | ReleaseHolds
    | Settle
)


@dataclass(frozen=True, slots=True)
class Policy:
    """The service's settings that the rules obey."""

    hold_ttl: timedelta
    partial_approval: bool = False
    return_grace: timedelta = timedelta(days=30)
    """A return to an expired line makes it usable for at least this long; zero writes it off."""
