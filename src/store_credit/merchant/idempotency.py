"""`Idempotency-Key`: a retry of the same request gets the first answer again.

Keys never expire, and are one space for all credentials: a retry may come under a rotated name. A refused
request stores nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import Header

from store_credit.ledger import store
from store_credit.ledger.commands import Command
from store_credit.ledger.ledger import Claim, Ledger, Record
from store_credit.ledger.refusals import KeyReused
from store_credit.ledger.state import Outcome
from store_credit.responses import Json

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]

Answer = Callable[[Sequence[Outcome]], dict[str, Any]]
Rows = Callable[[Sequence[Outcome], datetime], Iterable[Record]]


async def execute_once(
    ledger: Ledger,
    commands: Sequence[Command],
    *,
    key: str | None,
    request: Sequence[Any],
    answer: Answer,
    record: Rows | None = None,
    status: int = 200,
) -> Json:
    """Run the commands and answer; under a key, once.

    `request` is what makes two requests the same: method, path and content. Raises the ledger's refusals.
    """
    claim = None
    if key is not None:
        claim = Claim(_name(key), _fingerprint(request), lambda outcomes: json.dumps(answer(outcomes)))
    result = await ledger.execute(*commands, claim=claim, record=record)
    if result.earlier_answer is not None:
        return _replayed(result.earlier_answer, status)
    return Json(answer(result.outcomes), status)


async def answered_before(
    ledger: Ledger, *, key: str | None, request: Sequence[Any], status: int = 200
) -> Json | None:
    """The first answer to this key, for what must not even begin a second time. Raises KeyReused."""
    if key is None:
        return None
    claimed = (await ledger.database.read(store.claims, [_name(key)])).get(_name(key))
    if claimed is None:
        return None
    if claimed.fingerprint != _fingerprint(request):
        raise KeyReused("This was asked before, with another content.")
    return _replayed(claimed.answer, status)


def claim_of_step(step: str, key: str | None, request: Sequence[Any]) -> Claim | None:
    """Makes a step of a request that has several happen once, by its name of at most 15 characters."""
    return Claim(f"{step}:{key}", _fingerprint(request), lambda _: "") if key is not None else None


def _name(key: str) -> str:
    return f"key:{key}"


def _fingerprint(request: Sequence[Any]) -> str:
    content = json.dumps(list(request), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _replayed(answer: str, status: int) -> Json:
    return Json(json.loads(answer), status, {"Idempotent-Replayed": "true"})
