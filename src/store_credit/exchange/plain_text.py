"""How beancount and hledger write books. Texts from outside can neither end a line nor begin a syntax."""

from __future__ import annotations

from datetime import UTC, date, timedelta

from sqlalchemy import RowMapping

from store_credit import money
from store_credit.fields import time_text

_LINKS = (("deduction", "deduction_id"), ("event", "event_id"), ("actor", "actor"))


def _amount(minor: int, currency: str) -> str:
    return f"{money.to_decimal(minor, currency):f} {currency}"


def _one_line(text: str) -> str:
    """The text without control characters and runs of spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _entry_id(entry: RowMapping) -> str:
    return f"{entry['line_id']}.{entry['seq']}"


def _tags(entry: RowMapping) -> list[tuple[str, str]]:
    """What leads from a transaction back to its entry and its cause."""
    time = time_text(entry["created_at"].astimezone(UTC)) or ""
    return [("time", time), *((name, entry[column]) for name, column in _LINKS if entry[column])]


class Beancount:
    """https://beancount.github.io/docs/beancount_language_syntax.html"""

    def title(self) -> str:
        return 'option "title" "Store credit"\n\n'

    def account(self, name: str, currency: str) -> str:
        # Opened before all times: entries come line by line, so that the first is not the earliest.
        return f"1970-01-01 open {name} {currency}\n\n"

    def transaction(self, entry: RowMapping, day: date, postings: list[tuple[str, int]]) -> str:
        narration = ": ".join(filter(None, (entry["kind"], entry["reason"])))
        tags = [("entry", _entry_id(entry)), *_tags(entry)]
        lines = [
            f"{day} * {self._quoted(narration)}",
            *(f"  {name}: {self._quoted(value)}" for name, value in tags),
            *(f"  {name}  {_amount(minor, entry['currency'])}" for name, minor in postings),
        ]
        return "\n".join(lines) + "\n\n"

    def assertion(self, day: date, name: str, currency: str, balance: int) -> str:
        # A balance is that of the day's beginning, and "~ 0" allows no difference at all.
        number = money.to_decimal(balance, currency)
        return f"{day + timedelta(days=1)} balance {name}  {number:f} ~ 0 {currency}\n"

    def _quoted(self, text: str) -> str:
        escaped = _one_line(text).replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'


class Hledger:
    """https://hledger.org/hledger.html#journal"""

    def __init__(self) -> None:
        self._currencies: set[str] = set()

    def title(self) -> str:
        return "; Store credit\n\n"

    def account(self, name: str, currency: str) -> str:
        declared = f"account {name}\n\n"
        if currency not in self._currencies:
            self._currencies.add(currency)
            # The decimal mark must be there, also without decimals.
            example = f"{money.to_decimal(1000 * 10 ** money.EXPONENTS[currency], currency):f}"
            declared = f"commodity {example if '.' in example else example + '.'} {currency}\n{declared}"
        return declared

    def transaction(self, entry: RowMapping, day: date, postings: list[tuple[str, int]]) -> str:
        description = ": ".join(filter(None, (entry["kind"], entry["reason"])))
        lines = [
            f"{day} * ({_entry_id(entry)}) {self._plain(description)}",
            *(f"    ; {name}:{self._plain(value)}" for name, value in _tags(entry)),
            *(f"    {name}  {_amount(minor, entry['currency'])}" for name, minor in postings),
        ]
        return "\n".join(lines) + "\n\n"

    def assertion(self, day: date, name: str, currency: str, balance: int) -> str:
        # Within a day hledger goes by the order of the file, and these come last.
        nothing, all_of_it = _amount(0, currency), _amount(balance, currency)
        return f"{day} * end of day\n    {name}  {nothing} = {all_of_it}\n\n"

    def _plain(self, text: str) -> str:
        """Without what begins a comment, ends a tag or splits a payee from a note."""
        return _one_line(text).translate(str.maketrans(";,|", "   "))
