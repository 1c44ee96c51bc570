"""A short, always equal run of each fuzz target; `scripts/fuzz` runs them for as long as you like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from store_credit import money
from store_credit.ledger.sources import Source
from tests.fuzz import __main__ as program
from tests.fuzz import engine
from tests.fuzz.targets import TARGETS

RUNS = {"signatures": 10_000, "events": 1_500, "amounts": 6_000, "bodies": 5_000, "names": 6_000}

guided_only = pytest.mark.skipif(not engine.GUIDED, reason="atheris has no wheel for this machine")


@guided_only
@pytest.mark.parametrize("target", TARGETS)
def test_guided_bytes_find_nothing(target: str, tmp_path: Path) -> None:
    found = engine.guided(target, tmp_path, runs=RUNS[target])
    assert found is None, found


@pytest.mark.parametrize("target", TARGETS)
def test_random_bytes_find_nothing(target: str) -> None:
    engine.unguided(target, 50 if engine.GUIDED else RUNS[target] // 10)


# A search that can find nothing would be worth nothing.


def test_a_fault_in_money_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = money.to_number
    monkeypatch.setattr(money, "to_number", lambda minor, code: right(minor + (minor % 100 == 7), code))
    with pytest.raises(AssertionError):
        engine.unguided("amounts", 3_000)


def test_a_fault_in_returns_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Source, "owed", lambda _source, deducted: deducted + 1)
    with pytest.raises(AssertionError):
        engine.unguided("events", 2_000)


@guided_only
def test_what_is_found_is_told_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that does not exist stands for one that fails."""
    monkeypatch.setitem(engine.TARGETS, "missing", lambda _given: None)
    found = engine.guided("missing", tmp_path, runs=1)
    assert found is not None
    assert "KeyError: 'missing'" in found


@pytest.mark.parametrize(("found", "status"), [(None, 0), ("a traceback", 1)])
def test_the_program_tells_what_it_found(
    found: str | None,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    searched: list[str] = []

    def search(target: str, folder: Path, **_given: Any) -> str | None:
        assert folder == tmp_path
        searched.append(target)
        return found if target == "names" else None

    monkeypatch.setattr(program, "parsers", search)
    monkeypatch.setattr(program, "properties", lambda *_given: None)
    assert program.main(["--minutes", "0.001", "--folder", str(tmp_path)]) == status
    assert set(searched) == set(TARGETS)
    told = capsys.readouterr().out
    assert ("a traceback" in told) == (status == 1)
    assert ("names: FOUND" in told) == (status == 1)
